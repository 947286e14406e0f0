//! End-to-end tests against real Linux and real clients; the tests are in `tests/`.
