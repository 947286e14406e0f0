//! One lock per name, made when wanted and forgotten when free: what makes a layer that two pulls
//! ask for come once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

type Lock = AsyncMutex<()>;

/// Locks by name.
#[derive(Default)]
pub(crate) struct Keyed(Mutex<BTreeMap<String, Weak<Lock>>>);

impl Keyed {
    fn get(&self, name: &str) -> Arc<Lock> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(name).and_then(Weak::upgrade) {
            return known;
        }
        all.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(Lock::default());
        all.insert(name.to_owned(), Arc::downgrade(&lock));
        lock
    }

    /// Waits until nobody else holds `name`.
    pub(crate) async fn lock(&self, name: &str) -> OwnedMutexGuard<()> {
        self.get(name).lock_owned().await
    }

    /// Holds `name` if nobody else does.
    pub(crate) fn try_lock(&self, name: &str) -> Option<OwnedMutexGuard<()>> {
        self.get(name).try_lock_owned().ok()
    }
}
