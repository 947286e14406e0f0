//! Leader election by a Lease (coordination.k8s.io/v1), as upstream's components do it.
//!
//! Who holds the lease works; the others wait. A holder that cannot renew in time stops working
//! before anybody else may begin: the deadline is shorter than the lease.

use std::future::Future;
use std::time::{Duration, Instant};

use knarr_api::{ObjectKey, Reason, Resource};
use knarr_client::{Client, ClientError};
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{drained, now};

const LEASES: Resource = Resource::new("coordination.k8s.io/v1", "leases");
/// Upstream's defaults: lease duration, renew deadline, retry period.
const DURATION: Duration = Duration::from_secs(15);
const DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);

/// A lease to hold.
#[derive(Clone, Debug)]
pub struct Lease {
    /// Its name in kube-system, such as `kube-scheduler`.
    pub name: &'static str,
    /// Who wants it: unique among all processes.
    pub holder: String,
}

/// Runs `work` whenever the lease is held, until `drain` says so. `work` gets a drain signal of its
/// own, which also fires when the lease is lost.
pub async fn lead<F: Future<Output = ()>>(
    client: Client,
    lease: Lease,
    mut drain: watch::Receiver<bool>,
    work: impl Fn(watch::Receiver<bool>) -> F,
) {
    let mut observed: Option<(String, Instant)> = None;
    loop {
        if *drain.borrow() {
            return;
        }
        match acquire(&client, &lease, &mut observed).await {
            Ok(true) => {
                info!(lease = lease.name, holder = lease.holder, "leading");
                let (stop, stopped) = watch::channel(false);
                let keeping = async {
                    keep(&client, &lease, &mut drain).await;
                    stop.send_replace(true);
                };
                tokio::join!(work(stopped), keeping);
                observed = None;
            }
            Ok(false) => {}
            Err(error) => warn!(lease = lease.name, %error, "the lease cannot be had"),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = drained(&mut drain) => return,
        }
    }
}

/// Renews until told to stop (then the lease is given up) or until it cannot be renewed in time.
async fn keep(client: &Client, lease: &Lease, drain: &mut watch::Receiver<bool>) {
    let mut renewed = Instant::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = drained(drain) => return release(client, lease).await,
        }
        let left = DEADLINE.saturating_sub(renewed.elapsed());
        match tokio::time::timeout(left, acquire(client, lease, &mut None)).await {
            Ok(Ok(true)) => renewed = Instant::now(),
            Ok(Ok(false)) => return warn!(lease = lease.name, "somebody else leads"),
            Ok(Err(error)) => warn!(lease = lease.name, %error, "the lease was not renewed"),
            Err(_) => return warn!(lease = lease.name, "the lease ran out"),
        }
        if renewed.elapsed() >= DEADLINE {
            return warn!(lease = lease.name, "the lease ran out");
        }
    }
}

/// Takes or renews the lease; whether it is ours now. A foreign lease is judged by how long *we*
/// have seen it unchanged, never by comparing clocks.
async fn acquire(
    client: &Client,
    lease: &Lease,
    observed: &mut Option<(String, Instant)>,
) -> Result<bool, ClientError> {
    let key = ObjectKey::new("kube-system", lease.name);
    let stamp = now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    let live = match client.get(LEASES, &key).await {
        Ok(live) => live,
        Err(error) if error.is(Reason::NotFound) => {
            let object = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": lease.name, "namespace": "kube-system"},
                "spec": spec(lease, &stamp, &stamp, 0)});
            return won(client.create(LEASES, "kube-system", &object).await);
        }
        Err(error) => return Err(error),
    };
    let word = |pointer: &str| live.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let holder = word("/spec/holderIdentity");
    let own = holder == lease.holder;
    if !own && !holder.is_empty() {
        let renewed = word("/spec/renewTime").to_owned();
        match observed {
            Some((seen, since)) if *seen == renewed => {
                if since.elapsed() < DURATION {
                    return Ok(false);
                }
            }
            _ => {
                *observed = Some((renewed, Instant::now()));
                return Ok(false);
            }
        }
    }
    let changes = live.pointer("/spec/leaseTransitions").and_then(Value::as_i64).unwrap_or(0);
    let since = if own { word("/spec/acquireTime") } else { &stamp };
    let mut object = live.clone();
    object["spec"] = spec(lease, since, &stamp, changes + i64::from(!own));
    won(client.update(LEASES, &key, "", &object).await)
}

fn spec(lease: &Lease, acquired: &str, renewed: &str, changes: i64) -> Value {
    json!({"holderIdentity": lease.holder, "leaseDurationSeconds": DURATION.as_secs(),
        "acquireTime": acquired, "renewTime": renewed, "leaseTransitions": changes})
}

/// Losing a race for the lease is no error.
fn won(result: Result<Value, ClientError>) -> Result<bool, ClientError> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.is(Reason::Conflict) || error.is(Reason::AlreadyExists) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives the lease up, so that nobody has to wait for its end.
async fn release(client: &Client, lease: &Lease) {
    let key = ObjectKey::new("kube-system", lease.name);
    let Ok(mut live) = client.get(LEASES, &key).await else { return };
    if live["spec"]["holderIdentity"] == lease.holder.as_str() {
        live["spec"]["holderIdentity"] = "".into();
        live["spec"]["leaseDurationSeconds"] = 1.into();
        let _ = client.update(LEASES, &key, "", &live).await;
    }
}
