//! The two rings, controllers and scheduler: in the server's process or on their own.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use knarr_api::ip::Cidr;
use knarr_api::{Catalog, ObjectKey, Resource};
use knarr_apiserver::Server;
use knarr_client::Client;
use knarr_driver::{Gauges, Lease, Ring, lead};
use knarr_pki::{Authority, Kubeconfig};
use knarr_reconcile::{Config, KindRow};
use knarr_registry::User;
use serde_json::json;
use tracing::warn;

use crate::flags::{ComponentFlags, ControllerFlags, ManagerFlags};
use crate::health::{Health, Subject};
use crate::process::{Drain, Fatal};
use crate::ranges;

pub(crate) const MANAGER: &str = "system:kube-controller-manager";
pub(crate) const SCHEDULER: &str = "system:kube-scheduler";
const MANAGER_LEASE: &str = "kube-controller-manager";
/// Upstream's ports for health and metrics.
const MANAGER_PORT: u16 = 10257;
const SCHEDULER_PORT: u16 = 10259;
const ACCOUNTS: Resource = Resource::new("v1", "serviceaccounts");
/// Tokens of controllers in a process of their own; the process is restarted more often.
const TOKEN_SECONDS: u64 = 365 * 24 * 3600;

/// What the controllers are told.
pub(crate) fn config(
    authority: &Authority,
    cluster_cidrs: &[Cidr],
    flags: &ControllerFlags,
) -> Config {
    Config {
        root_ca: authority.certificate().to_owned(),
        cluster_cidrs: cluster_cidrs.iter().map(ToString::to_string).collect(),
        kinds: kinds(),
        node_monitor_grace_period: Some(flags.node_monitor_grace_period),
    }
}

/// Every built-in kind that can be watched and deleted, each at one version.
fn kinds() -> Vec<KindRow> {
    let catalog = Catalog::builtin();
    let mut seen = BTreeSet::new();
    let mut rows = Vec::new();
    for kind in catalog.kinds() {
        let usable = ["list", "watch", "delete"].iter().all(|verb| kind.serves(verb));
        // Events are stored once and served under two groups.
        let twin = kind.group == "events.k8s.io";
        if usable && !twin && seen.insert(kind.group_resource().to_string()) {
            rows.push(KindRow {
                kind: kind.kind.clone(),
                resource: Resource {
                    api_version: kind.api_version().leak(),
                    plural: kind.plural.clone().leak(),
                },
                namespaced: kind.namespaced(),
            });
        }
    }
    rows
}

/// The user that a component in this process is.
pub(crate) fn user(name: &str) -> User {
    match name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')) {
        Some((namespace, _)) => {
            let own = format!("system:serviceaccounts:{namespace}");
            User::new(name, &["system:serviceaccounts", &own])
        }
        None => User::new(name, &[]),
    }
}

/// The controllers, in the server's process.
pub(crate) fn manager_in_process(
    server: &Arc<Server>,
    authority: Arc<Authority>,
    config: Config,
) -> Ring {
    let of = server.clone();
    Ring {
        controllers: knarr_controllers::all(&config),
        watcher: Client::in_process(server.clone(), user(MANAGER)),
        config,
        authority: Some(authority),
        client_of: Box::new(move |name| Client::in_process(of.clone(), user(name))),
        gauges: Arc::default(),
    }
}

/// The scheduler, in the server's process.
pub(crate) fn scheduler_in_process(server: &Arc<Server>) -> Ring {
    let client = Client::in_process(server.clone(), user(SCHEDULER));
    scheduler(client, Arc::default())
}

fn scheduler(client: Client, gauges: Arc<Gauges>) -> Ring {
    let own = client.clone();
    Ring {
        controllers: vec![knarr_scheduler::controller()],
        watcher: client,
        config: Config::default(),
        authority: None,
        client_of: Box::new(move |_| own.clone()),
        gauges,
    }
}

/// Runs a ring while its lease is held.
pub(crate) async fn run_leading(
    client: Client,
    lease: Lease,
    drain: Drain,
    ring: impl Fn() -> Ring,
) {
    lead(client, lease, drain, |stop| knarr_driver::run(ring(), stop)).await;
}

/// Who this process is among those that want a lease.
fn holder() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{}", host.trim(), std::process::id())
}

/// Runs the scheduler against an API server.
pub(crate) async fn run_scheduler(flags: ComponentFlags, drain: Drain) -> Result<(), Fatal> {
    let client = connect(&flags.kubeconfig)?;
    let lease = Lease { name: "kube-scheduler", holder: holder() };
    let gauges = Arc::<Gauges>::default();
    let subject = Subject { lease: lease.name, gauges: gauges.clone() };
    let health = Health::bind(&flags.health, SCHEDULER_PORT, subject).await?;
    tokio::select! {
        () = run_leading(client.clone(), lease, drain, || scheduler(client.clone(), gauges.clone()))
            => {}
        () = health.serve() => {}
    }
    Ok(())
}

fn connect(kubeconfig: &Path) -> Result<Client, Fatal> {
    Ok(Client::connect(&Kubeconfig::read(kubeconfig)?)?)
}

/// Runs the controllers against an API server, each with the token of its own service account.
pub(crate) async fn run_manager(flags: ManagerFlags, drain: Drain) -> Result<(), Fatal> {
    let gauges = Arc::<Gauges>::default();
    let subject = Subject { lease: MANAGER_LEASE, gauges: gauges.clone() };
    let health = Health::bind(&flags.component.health, MANAGER_PORT, subject).await?;
    tokio::select! {
        result = manage(flags, drain, gauges) => result,
        () = health.serve() => Ok(()),
    }
}

async fn manage(flags: ManagerFlags, drain: Drain, gauges: Arc<Gauges>) -> Result<(), Fatal> {
    let kubeconfig = Kubeconfig::read(&flags.component.kubeconfig)?;
    let client = Client::connect(&kubeconfig)?;
    let authority = Arc::new(Authority::load_or_create(&flags.pki_dir)?);
    let config = config(&authority, &ranges::pods(&flags.cluster_cidr)?, &flags.controllers);
    let names: BTreeSet<&str> =
        knarr_controllers::all(&config).iter().map(|row| row.user).collect();
    let mut clients = std::collections::BTreeMap::new();
    for name in names {
        clients.insert(name.to_owned(), account_client(&client, &kubeconfig, name).await?);
    }
    let lease = Lease { name: MANAGER_LEASE, holder: holder() };
    let ring = || {
        let (clients, fallback) = (clients.clone(), client.clone());
        Ring {
            controllers: knarr_controllers::all(&config),
            watcher: client.clone(),
            config: config.clone(),
            authority: Some(authority.clone()),
            client_of: Box::new(move |name| clients.get(name).unwrap_or(&fallback).clone()),
            gauges: gauges.clone(),
        }
    };
    run_leading(client.clone(), lease, drain, ring).await;
    Ok(())
}

/// A client that is a service account, by a token that the API server gives out.
async fn account_client(
    client: &Client,
    kubeconfig: &Kubeconfig,
    user: &str,
) -> Result<Client, Fatal> {
    let account = user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let Some((namespace, name)) = account else { return Ok(client.clone()) };
    let object = json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": namespace}});
    if let Err(error) = client.create(ACCOUNTS, namespace, &object).await
        && !error.is(knarr_api::Reason::AlreadyExists)
    {
        warn!(name, %error, "the service account was refused");
    }
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"expirationSeconds": TOKEN_SECONDS}});
    let key = ObjectKey::new(namespace, name);
    let answer = client.create_sub(ACCOUNTS, &key, "token", &request).await?;
    let token = answer.pointer("/status/token").and_then(|token| token.as_str());
    let config = Kubeconfig { client: None, token: token.map(str::to_owned), ..kubeconfig.clone() };
    Ok(Client::connect(&config)?)
}
