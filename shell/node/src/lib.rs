//! The node agent: pumps podlife against the runtime, and reports.
