//! One API by two roads: in process and over TLS.
