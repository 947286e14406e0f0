//! Runs controllers and the scheduler: watches in, plans out.
//!
//! One [`run`] is one ring: it watches what its rows name, feeds the engine, carries out plans
//! (several at once, bounded), and sleeps until something happens or a deadline that the engine
//! named. It decides nothing about objects.

mod execute;
mod gauges;
mod lease;
mod reflect;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use knarr_api::Resource;
use knarr_client::Client;
use knarr_pki::Authority;
use knarr_reconcile::{Change, Config, Controller, Engine, Job, Outcome};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

pub use gauges::Gauges;
pub use lease::{Lease, lead};
pub use reflect::{Scope, reflect};

/// Plans carried out at the same time.
const MAX_JOBS: usize = 64;
/// Watch items waiting for the engine.
const MAX_ITEMS: usize = 1024;

/// What a ring needs.
pub struct Ring {
    /// Its rows.
    pub controllers: Vec<Controller>,
    /// The client that watches.
    pub watcher: Client,
    /// What its controllers are told.
    pub config: Config,
    /// Who signs certificates, where a controller asks for that.
    pub authority: Option<Arc<Authority>>,
    /// A client for a controller's user.
    pub client_of: Box<dyn Fn(&str) -> Client + Send>,
    /// Where it tells about itself while it runs.
    pub gauges: Arc<Gauges>,
}

/// The wall clock.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_nanosecond(since.as_nanos() as i128).unwrap_or(Timestamp::MAX)
}

/// Waits until everybody is to finish.
pub(crate) async fn drained(drain: &mut watch::Receiver<bool>) {
    drain.wait_for(|drain| *drain).await.ok();
}

fn seed() -> u64 {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).expect("the kernel gives randomness");
    u64::from_le_bytes(seed)
}

/// Runs a ring until `drain` says so. Jobs in progress are finished.
pub async fn run(ring: Ring, mut drain: watch::Receiver<bool>) {
    let mut engine = Engine::new(ring.controllers, ring.config);
    let (send, mut items) = mpsc::channel::<(Resource, Change)>(MAX_ITEMS);
    let mut restarts: BTreeMap<Resource, Arc<Notify>> = BTreeMap::new();
    let mut reflectors = JoinSet::new();
    for resource in engine.resources() {
        let restart = restarts.entry(resource).or_default().clone();
        reflectors.spawn(reflect(
            ring.watcher.clone(),
            Scope::all(resource),
            restart,
            send.clone(),
        ));
    }
    let users: Vec<Client> =
        engine.controllers().iter().map(|row| (ring.client_of)(row.user)).collect();
    let mut jobs: JoinSet<(Job, Outcome)> = JoinSet::new();
    loop {
        while jobs.len() < MAX_JOBS
            && let Some(job) = engine.poll(now(), seed())
        {
            let client = users[job.controller].clone();
            let reporter = engine.controllers()[job.controller].name;
            let hand = execute::Hand { client, authority: ring.authority.clone(), reporter };
            jobs.spawn(hand.carry_out(job));
        }
        ring.gauges.set(Some(engine.depths()));
        let deadline = engine.deadline();
        tokio::select! {
            Some((resource, change)) = items.recv() => {
                engine.handle(resource, &change);
                while let Ok((resource, change)) = items.try_recv() {
                    engine.handle(resource, &change);
                }
            }
            Some(Ok((job, outcome))) = jobs.join_next(), if !jobs.is_empty() => {
                if let Outcome::Unknown(resources) = &outcome {
                    for resource in resources {
                        engine.handle(*resource, &Change::Restarted);
                        restarts.get(resource).into_iter().for_each(|restart| restart.notify_one());
                    }
                }
                engine.finish(&job, outcome, now());
            }
            () = sleep_until(deadline), if deadline.is_some() && jobs.len() < MAX_JOBS => {}
            () = drained(&mut drain) => break,
        }
    }
    while jobs.join_next().await.is_some() {}
    ring.gauges.set(None);
}

async fn sleep_until(deadline: Option<Timestamp>) {
    let Some(deadline) = deadline else { return };
    let wait = deadline.duration_since(now());
    tokio::time::sleep(Duration::try_from(wait).unwrap_or_default()).await;
}
