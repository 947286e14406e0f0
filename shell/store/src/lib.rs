//! The log on disk and the pump around the keyspace.
