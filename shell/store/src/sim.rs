//! Simulated halves of the seams.

use std::io;
use std::sync::Arc;

use crate::clock::SystemClock;
use crate::config::StoreConfig;
use crate::disk::{Disk, DiskFile};
use crate::store::Store;

/// A disk in memory.
#[derive(Debug, Default)]
pub struct SimDisk;

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }
    fn open(&self, _name: &str) -> io::Result<Box<dyn DiskFile>> {
        Err(io::ErrorKind::NotFound.into())
    }
    fn create(&self, _name: &str) -> io::Result<Box<dyn DiskFile>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        Ok(())
    }
    fn remove(&self, _name: &str) -> io::Result<()> {
        Ok(())
    }
    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Store {
    /// A store that forgets everything with its last handle, for tests.
    pub fn in_memory() -> Self {
        let clock = Arc::new(SystemClock::default());
        Self::open(Arc::new(SimDisk), clock, StoreConfig::default())
            .expect("an empty simulated disk opens")
    }
}
