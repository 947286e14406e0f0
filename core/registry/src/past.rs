//! Reading the cluster as it was: which requests may, what they ask of the shell, and what its
//! answer means.
//!
//! A request says when by a header or a prefix of its path (`/at/WHEN/api/v1/…`). Only plain reads
//! of stored objects can be answered; who may read is judged by the rules of now, so that nobody
//! sees through an old role what is closed to them today, or the other way round. A list at an
//! older revision takes the same way: what the shell found becomes a keyspace of its own for one
//! answer.

use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use jiff::{SignedDuration, Timestamp};
use knarr_api::{Kind, Reason, Status};
use knarr_mvcc::{Item, KeyRange, KeyValue, Keyspace, Meta, Restore, Revision, Version};

use crate::call::{Ask, Next, World, serves, unserved};
use crate::discovery;
use crate::lens::Lens;
use crate::object::Snapshot;
use crate::read;
use crate::request::{Request, RequestInfo};
use crate::response::Response;

/// When the cluster is to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// As of a revision.
    Revision(Revision),
    /// As of the newest revision made before.
    Time(Timestamp),
}

const UNITS: [(&str, i64); 5] =
    [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

impl Moment {
    /// Reads a revision (`1234`), a time (`2026-11-28T12:00:00Z`), or how long ago (`-10m`,
    /// `1h30m ago`).
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, now: Timestamp) -> Result<Self, String> {
        let text = text.trim();
        if let Ok(revision) = text.parse() {
            return Ok(Self::Revision(Revision(revision)));
        }
        let ago = text.strip_prefix('-').or_else(|| text.strip_suffix("ago"));
        let time = match ago {
            Some(ago) => duration(ago.trim()).and_then(|ago| now.checked_sub(ago).ok()),
            None => text.parse().ok(),
        };
        time.map(Self::Time).ok_or_else(|| {
            format!(
                "{text:?} is no moment: give a revision, a time such as 2026-11-28T12:00:00Z, or \
                 how long ago, such as -10m or \"10m ago\""
            )
        })
    }
}

/// Numbers with units, `1h30m`.
fn duration(mut text: &str) -> Option<SignedDuration> {
    let mut sum = None;
    while !text.is_empty() {
        let (number, rest) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
        let found = |(unit, ms): &(&str, i64)| Some((*ms, rest.strip_prefix(unit)?));
        let (ms, rest) = UNITS.iter().find_map(found)?;
        let part = number.parse::<i64>().ok()?.checked_mul(ms)?;
        sum = Some(sum.unwrap_or(0i64).checked_add(part)?);
        text = rest;
    }
    sum.map(SignedDuration::from_millis)
}

/// A range as it was.
#[derive(Clone, Debug)]
pub struct PastRange {
    /// Of which revision.
    pub revision: Revision,
    /// When that was made, if it is known.
    pub time: Option<Timestamp>,
    /// In key order.
    pub kvs: Vec<KeyValue>,
}

/// Why a range cannot be told.
#[derive(Clone, Debug)]
pub enum PastRefusal {
    /// The past does not go back so far; where it begins.
    Gone(String),
    /// It has not happened yet; the newest revision.
    Future(Revision),
    /// Files cannot be read.
    Failed(String),
}

/// A read that waits for the past.
pub(crate) struct Look {
    info: RequestInfo,
    /// Whether the whole request is about the past, not only the revision of its list.
    travels: bool,
}

/// Serves a request that says when.
pub(crate) fn serve(
    world: &World<'_>,
    request: &Request,
    info: RequestInfo,
) -> Result<Next, Status> {
    let moment = Moment::parse(&request.at, world.now).map_err(Status::bad_request)?;
    if !["get", "list", "head"].contains(&info.verb) {
        return Err(only_reads(match info.verb {
            "watch" => "the past does not change: it cannot be watched",
            _ => "the past cannot be changed: only get and list are served",
        }));
    }
    if !info.is_resource() {
        return discovery::serve(world, request, &info).map(Next::Done);
    }
    let kind = info.kind.clone().ok_or_else(Status::no_such_path)?;
    if !serves(&kind, &info) {
        return Err(unserved(&kind, &info));
    }
    if Lens::of(&kind, &info.subresource).is_none() {
        return Err(only_reads("only stored objects can be read as they were"));
    }
    // A later page goes on where the first one was.
    let moment = read::continued(&info)?.map_or(moment, Moment::Revision);
    Ok(look(info, &kind, moment, true))
}

/// The way to a list at a revision that memory no longer has, if that is what is asked for.
pub(crate) fn older(
    world: &World<'_>,
    info: &RequestInfo,
    kind: &Kind,
) -> Result<Option<Next>, Status> {
    if info.verb != "list" {
        return Ok(None);
    }
    let at = read::list_revision(world, info)?;
    let held = at >= world.snapshot.keyspace().oldest_readable();
    Ok((!held).then(|| look(info.clone(), kind, Moment::Revision(at), false)))
}

fn look(info: RequestInfo, kind: &Kind, at: Moment, travels: bool) -> Next {
    let range = match info.object.name.as_str() {
        "" => KeyRange::prefix(kind.namespace_prefix(&info.object.namespace).into_bytes()),
        _ => KeyRange::single(kind.key(&info.object).into_bytes()),
    };
    Next::Look(Ask::Past { range, at, compacted: travels }, Box::new(Look { info, travels }))
}

/// Answers a read from what the shell found.
pub(crate) fn answered(
    world: &World<'_>,
    request: &Request,
    look: Look,
    found: Result<PastRange, PastRefusal>,
) -> Result<Next, Status> {
    let found = found.map_err(|refusal| match refusal {
        PastRefusal::Gone(why) if look.travels => Status::expired(why),
        PastRefusal::Gone(_) => read::gone_list(),
        PastRefusal::Future(newest) => {
            Status::bad_request(format!("that is yet to come: the newest revision is {}", newest.0))
        }
        PastRefusal::Failed(why) => Status::internal(why),
    })?;
    let (revision, time) = (found.revision, found.time);
    let keyspace = keyspace(found).map_err(Status::internal)?;
    let now = if look.travels { time.unwrap_or(world.now) } else { world.now };
    let world = World { snapshot: Snapshot::new(&keyspace, revision), now, ..*world };
    let kind = look.info.kind.clone().ok_or_else(Status::no_such_path)?;
    let response: Response = read::serve(&world, request, &look.info, &kind)?;
    Ok(Next::Done(response))
}

/// A keyspace that holds just this.
fn keyspace(found: PastRange) -> Result<Keyspace, String> {
    let (revision, floor) = (found.revision, found.revision);
    let meta = Item::Meta(Meta { revision, floor, ..Meta::default() });
    let mut restore = Restore::new();
    let base = found.kvs.iter().map(|kv| Item::Base(Version::of(kv)));
    for item in core::iter::once(meta).chain(base) {
        restore.push(item).map_err(|error| error.to_string())?;
    }
    restore.finish().map_err(|error| error.to_string())
}

fn only_reads(why: &str) -> Status {
    Status::new(Reason::MethodNotAllowed, why.to_owned())
}
