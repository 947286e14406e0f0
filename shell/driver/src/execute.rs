//! Carrying out a plan: stage after stage, the writes of one stage together.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use knarr_api::{ObjectKey, Reason, Resource};
use knarr_client::{Client, ClientError, PatchType};
use knarr_reconcile::{Event, Job, Outcome, Patch, Write, Written};
use serde_json::{Value, json};
use tracing::{debug, warn};

use crate::now;

const EVENTS: Resource = Resource::new("v1", "events");

/// Carries out a job's plan.
pub(crate) async fn carry_out(client: Client, job: Job, reporter: &'static str) -> (Job, Outcome) {
    let mut written = Vec::new();
    for stage in &job.plan.stages {
        let results = join_all(stage.iter().map(|write| one(&client, write))).await;
        let (mut failed, mut unknown) = (false, BTreeSet::new());
        for (write, result) in stage.iter().zip(results) {
            match result {
                Ok(mark) => written.extend(mark),
                Err(error) if harmless(write, &error) => {
                    debug!(controller = reporter, key = %job.key.object, %error, "write came late");
                }
                Err(ClientError::Unknown(why)) => {
                    warn!(controller = reporter, key = %job.key.object, why, "write unanswered");
                    unknown.insert(write.resource());
                }
                Err(error) => {
                    failed = true;
                    if error.is(Reason::Conflict) {
                        debug!(controller = reporter, key = %job.key.object, %error, "write lost");
                    } else {
                        warn!(controller = reporter, key = %job.key.object, %error, "write refused");
                    }
                }
            }
        }
        if !unknown.is_empty() {
            return (job, Outcome::Unknown(unknown.into_iter().collect()));
        }
        if failed {
            return (job, Outcome::Failed(written));
        }
    }
    for event in &job.plan.events {
        record(&client, event, reporter).await;
    }
    (job, Outcome::Done(written))
}

/// What a controller wanted has come about without it.
fn harmless(write: &Write, error: &ClientError) -> bool {
    matches!(write, Write::Delete { .. })
        && (error.is(Reason::NotFound) || error.is(Reason::Conflict))
}

async fn one(client: &Client, write: &Write) -> Result<Option<Written>, ClientError> {
    let resource = write.resource();
    let answer = match write {
        Write::Create { namespace, object, .. } => {
            client.create(resource, namespace, object).await?
        }
        Write::Patch { object, subresource, kind, body, .. } => {
            let kind = match kind {
                Patch::Merge => PatchType::Merge,
                Patch::Strategic => PatchType::Strategic,
            };
            client.patch(resource, object, subresource, kind, body).await?
        }
        Write::Post { object, subresource, body, .. } => {
            client.create_sub(resource, object, subresource, body).await?
        }
        Write::Put { object, subresource, body, .. } => {
            client.update(resource, object, subresource, body).await?
        }
        Write::Delete { object, options, .. } => client.delete(resource, object, options).await?,
    };
    Ok(mark(resource, write, &answer))
}

/// What the view will come to show of a write.
fn mark(resource: Resource, write: &Write, answer: &Value) -> Option<Written> {
    let revision = answer.pointer("/metadata/resourceVersion").and_then(Value::as_str);
    if let Some(revision) = revision.and_then(|text| text.parse().ok()) {
        return Some(Written::At(resource, revision));
    }
    let uid = answer.pointer("/details/uid").and_then(Value::as_str)?;
    match write {
        Write::Delete { object, .. } => Some(Written::Gone(resource, object.clone(), uid.into())),
        _ => None,
    }
}

/// Records an event; one that is refused is not worth a retry.
async fn record(client: &Client, event: &Event, reporter: &str) {
    let at = now();
    let word = |key: &str| event.regarding[key].as_str().unwrap_or_default();
    let namespace = if word("namespace").is_empty() { "default" } else { word("namespace") };
    let name = format!("{}.{:x}", word("name"), at.as_nanosecond());
    let stamp = at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let object = json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": event.regarding, "type": format!("{:?}", event.kind),
        "reason": event.reason, "message": event.message, "count": 1,
        "source": {"component": reporter}, "reportingComponent": reporter,
        "reportingInstance": "", "firstTimestamp": stamp, "lastTimestamp": stamp,
    });
    if let Err(error) = client.create(EVENTS, namespace, &object).await {
        debug!(reporter, %error, object = %ObjectKey::new(namespace, word("name")), "event lost");
    }
}
