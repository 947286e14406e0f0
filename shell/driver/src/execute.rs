//! Carrying out a plan: stage after stage, the writes of one stage together.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use knarr_api::{GroupResource, ObjectKey, Reason, Resource, Status};
use knarr_client::{Client, ClientError, PatchType};
use knarr_pki::Authority;
use knarr_reconcile::{Event, Job, Outcome, Patch, Usage, Write, Written};
use serde_json::{Value, json};
use tracing::{debug, warn};

use crate::now;

const EVENTS: Resource = Resource::new("v1", "events");

/// What carries out plans of one controller.
pub(crate) struct Hand {
    pub(crate) client: Client,
    pub(crate) authority: Option<Arc<Authority>>,
    pub(crate) reporter: &'static str,
}

/// How the writes of one stage went.
#[derive(Default)]
struct Tally {
    failed: bool,
    refused: Option<String>,
    unknown: BTreeSet<Resource>,
}

impl Hand {
    /// Carries out a job's plan.
    pub(crate) async fn carry_out(self, job: Job) -> (Job, Outcome) {
        let mut written = Vec::new();
        for stage in &job.plan.stages {
            let results = join_all(stage.iter().map(|write| self.one(write))).await;
            let mut tally = Tally::default();
            for (write, result) in stage.iter().zip(results) {
                match result {
                    Ok(mark) => written.extend(mark),
                    Err(error) => self.count(&job, write, &error, &mut tally),
                }
            }
            if !tally.unknown.is_empty() {
                return (job, Outcome::Unknown(tally.unknown.into_iter().collect()));
            }
            if tally.failed {
                if let (Some(event), Some(why)) = (&job.plan.on_refusal, &tally.refused) {
                    let message = format!("{}{why}", event.message);
                    record(&self.client, &Event { message, ..event.clone() }, self.reporter).await;
                }
                return (job, Outcome::Failed(written, tally.refused));
            }
        }
        for event in &job.plan.events {
            record(&self.client, event, self.reporter).await;
        }
        (job, Outcome::Done(written))
    }

    fn count(&self, job: &Job, write: &Write, error: &ClientError, tally: &mut Tally) {
        let (controller, key) = (self.reporter, &job.key.object);
        match error {
            error if harmless(write, error) => debug!(controller, %key, %error, "write came late"),
            ClientError::Unknown(why) => {
                warn!(controller, %key, why, "write unanswered");
                tally.unknown.insert(write.resource());
            }
            error if error.is(Reason::Conflict) => {
                debug!(controller, %key, %error, "write lost a race");
                tally.failed = true;
            }
            error => {
                warn!(controller, %key, %error, "write refused");
                tally.failed = true;
                tally.refused = Some(error.to_string());
            }
        }
    }

    async fn one(&self, write: &Write) -> Result<Option<Written>, ClientError> {
        let resource = write.resource();
        let client = &self.client;
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
            Write::Delete { object, options, .. } => {
                client.delete(resource, object, options).await?
            }
            Write::Absent { object, uid, .. } => {
                return match client.get(resource, object).await {
                    Err(error) if error.is(Reason::NotFound) => Ok(None),
                    Ok(live) if !uid.is_empty() && live["metadata"]["uid"] != uid.as_str() => {
                        Ok(None)
                    }
                    Ok(_) => Err(stale(resource, &object.name)),
                    Err(error) => Err(error),
                };
            }
            Write::Empty { namespace, .. } => {
                let list = client.list(resource, namespace, "limit=1").await?;
                let empty = list["items"].as_array().is_none_or(Vec::is_empty);
                return if empty { Ok(None) } else { Err(stale(resource, namespace)) };
            }
            Write::Sign { object, request_pem, usage, seconds } => {
                let certificate = self.sign(request_pem, *usage, *seconds)?;
                let mut live = client.get(resource, object).await?;
                live["status"]["certificate"] = STANDARD.encode(certificate).into();
                client.update(resource, object, "status", &live).await?
            }
        };
        Ok(mark(resource, write, &answer))
    }

    fn sign(&self, request: &str, usage: Usage, seconds: u64) -> Result<String, ClientError> {
        let refuse = |why: String| ClientError::Refused(Status::internal(why));
        let authority = self.authority.as_ref();
        let authority = authority.ok_or_else(|| refuse("no CA to sign with".to_owned()))?;
        let usage = match usage {
            Usage::Client => knarr_pki::Usage::Client,
            Usage::Server => knarr_pki::Usage::Server,
        };
        let life = Some(Duration::from_secs(seconds));
        authority.sign_request(request, usage, life).map_err(|error| refuse(error.to_string()))
    }
}

/// A guard did not hold: the view that the plan was made on is behind.
fn stale(resource: Resource, name: &str) -> ClientError {
    let resource = GroupResource { group: resource.group(), resource: resource.plural };
    ClientError::Refused(Status::conflict(resource, name, "it is still there"))
}

/// What a controller wanted has come about without it.
fn harmless(write: &Write, error: &ClientError) -> bool {
    let Write::Delete { options, .. } = write else { return false };
    // A conflict says that it is another object by now, unless the very version was meant.
    let any_version = options.pointer("/preconditions/resourceVersion").is_none();
    error.is(Reason::NotFound) || error.is(Reason::Conflict) && any_version
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
