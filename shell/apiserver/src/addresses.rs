//! Which API servers there are. Those that share a store each keep their address in it under a
//! lease, as upstream's do; the Service `kubernetes` leads to all whose leases last.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use knarr_mvcc::{KeyRange, LeaseId, Op, Revision, Txn};
use knarr_registry::bootstrap::api_server_endpoints;
use knarr_store::StoreError;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::warn;

use crate::server::Server;

/// Upstream's place for the addresses.
const KEYS: &str = "/registry/masterleases/";
/// How long an address lasts that nobody renews, in seconds, and how often it is renewed.
const LASTS: i64 = 15;
const RENEW: Duration = Duration::from_secs(10);

/// What a server knows of itself and the others.
#[derive(Default)]
struct Announced {
    lease: Option<LeaseId>,
    told: BTreeSet<IpAddr>,
}

impl Server {
    /// Says that this server is here, and who else is, until it goes down.
    pub async fn stay_announced(self: Arc<Self>, mut drain: watch::Receiver<bool>) {
        let Some(own) = self.reachable() else { return };
        let mut announced = Announced::default();
        while !*drain.borrow() {
            if let Err(error) = self.announce(own, &mut announced).await {
                warn!(%error, "this server's address could not be renewed");
            }
            tokio::select! {
                () = sleep(RENEW) => {}
                _ = drain.wait_for(|drain| *drain) => {}
            }
        }
        if let Some(lease) = announced.lease {
            // It ends by itself if this fails.
            let _ = self.store().lease_revoke(lease).await;
            self.lead_to(&self.announced()).await;
        }
    }

    /// This server's address, if Pods can reach it.
    fn reachable(&self) -> Option<IpAddr> {
        let own = self.pipeline().advertise.parse::<SocketAddr>().ok()?.ip();
        let leads = !api_server_endpoints(self.pipeline(), &BTreeSet::from([own])).is_empty();
        leads.then_some(own)
    }

    async fn announce(
        self: &Arc<Self>,
        own: IpAddr,
        announced: &mut Announced,
    ) -> Result<(), StoreError> {
        let kept = match announced.lease {
            Some(lease) => self.store().lease_keep_alive(lease).await?.is_some(),
            None => false,
        };
        if !kept {
            let (lease, _) = self.store().lease_grant(LeaseId(0), LASTS).await?;
            announced.lease = Some(lease);
            let value =
                api_server_endpoints(self.pipeline(), &BTreeSet::from([own])).swap_remove(0);
            let (key, value) = (Bytes::from(format!("{KEYS}{own}")), value.to_string().into());
            let success = vec![Op::Put { key, value, lease }];
            self.store().txn(Txn { success, ..Txn::default() }).await?;
        }
        self.store().fresh().await?;
        let addresses = self.announced();
        if addresses != announced.told {
            self.lead_to(&addresses).await;
            announced.told = addresses;
        }
        Ok(())
    }

    /// The addresses of all servers.
    fn announced(&self) -> BTreeSet<IpAddr> {
        self.store().read(|keyspace, _| {
            let keys = keyspace.iter(&KeyRange::prefix(KEYS), Revision(0)).into_iter().flatten();
            let address = |key: &[u8]| std::str::from_utf8(&key[KEYS.len()..]).ok()?.parse().ok();
            keys.filter_map(|kv| address(&kv.key)).collect()
        })
    }
}
