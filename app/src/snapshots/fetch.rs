//! A snapshot of a running etcd, as `etcdctl snapshot save` gets it.

use knarr_etcdpb::etcdserverpb::SnapshotRequest;
use knarr_etcdpb::etcdserverpb::maintenance_client::MaintenanceClient;
use knarr_store::external::Tls;
use tonic::transport::Channel;

use super::Progress;
use crate::flags::ImportFlags;
use crate::process::{self, Fatal};

/// How long a member may take to accept a connection.
const CONNECT: std::time::Duration = std::time::Duration::from_secs(10);

/// The whole snapshot, its sha256 included.
pub(super) fn snapshot(flags: &ImportFlags) -> Result<Vec<u8>, Fatal> {
    let mut file = Vec::new();
    let into = &mut file;
    process::run(|mut drain| async move {
        tokio::select! {
            fetched = first_that_answers(flags, into) => fetched,
            _ = drain.changed() => Err(Fatal("interrupted; nothing was written".to_owned())),
        }
    })?;
    Ok(file)
}

async fn first_that_answers(flags: &ImportFlags, into: &mut Vec<u8>) -> Result<(), Fatal> {
    let mut refused = Vec::new();
    for endpoint in &flags.endpoints {
        into.clear();
        match fetch(flags, endpoint, into).await {
            Ok(()) => return Ok(()),
            Err(Fatal(why)) => refused.push(format!("{endpoint}: {why}")),
        }
    }
    Err(Fatal(format!("no endpoint gave a snapshot: {}", refused.join("; "))))
}

async fn fetch(flags: &ImportFlags, endpoint: &str, into: &mut Vec<u8>) -> Result<(), Fatal> {
    let mut client = MaintenanceClient::new(connect(flags, endpoint).await?);
    let refused = |status: tonic::Status| Fatal(status.message().to_owned());
    let stream = client.snapshot(SnapshotRequest::default()).await.map_err(refused)?;
    let mut stream = stream.into_inner();
    let mut progress = Progress::new();
    while let Some(piece) = stream.message().await.map_err(refused)? {
        into.extend_from_slice(&piece.blob);
        let left = piece.remaining_bytes;
        progress
            .tell(|| format!("{} MB of {} MB", into.len() >> 20, (into.len() as u64 + left) >> 20));
    }
    Ok(())
}

async fn connect(flags: &ImportFlags, endpoint: &str) -> Result<Channel, Fatal> {
    let client = flags.cert.clone().zip(flags.key.clone());
    let tls = Tls { authority: flags.cacert.clone(), client };
    let target =
        if endpoint.contains("://") { endpoint.to_owned() } else { format!("http://{endpoint}") };
    let endpoint = tls.endpoint(&target).map_err(Fatal)?.connect_timeout(CONNECT);
    endpoint.connect().await.map_err(|error| Fatal(reason(&error)))
}

/// An error with what it comes from, without which it says little.
fn reason(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
