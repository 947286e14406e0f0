//! The state machine itself: one [`Call`] per request.

use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use jiff::Timestamp;
use knarr_api::ip::Cidr;
use knarr_api::{Catalog, Status};
use knarr_mvcc::{KeyRange, Txn, TxnResponse};
use knarr_schema::Schema;

use crate::auth::{self, Claims};
use crate::object::Snapshot;
use crate::past::{Look, Moment, PastRange, PastRefusal};
use crate::request::{Request, RequestInfo, User};
use crate::response::Response;
use crate::views::Views;
use crate::write::Write;
use crate::{discovery, past, read, special};

/// What an administrator chose.
#[derive(Clone, Debug)]
pub struct Config {
    /// `gitVersion` of `/version`.
    pub version: String,
    /// Issuer of service account tokens.
    pub issuer: String,
    /// The address that `/api` names for clients.
    pub advertise: String,
    /// Where Services get their cluster IPs from, one range per family, the cluster's own first.
    pub service_cidrs: Vec<Cidr>,
    /// Where Services get their node ports from.
    pub node_ports: RangeInclusive<u16>,
}

/// Everything a request may look at, as of one moment.
#[derive(Clone, Copy)]
pub struct World<'a> {
    /// The objects.
    pub snapshot: Snapshot<'a>,
    /// What is derived from them, at the same revision.
    pub views: &'a Views,
    /// What the administrator chose.
    pub config: &'a Config,
    /// The time.
    pub now: Timestamp,
    /// Fresh randomness for this step: names, uids.
    pub seed: u128,
}

impl<'a> World<'a> {
    pub(crate) fn catalog(&self) -> &'a Catalog {
        &self.views.catalog
    }

    pub(crate) fn schema(&self) -> &'a Schema {
        &self.views.schema
    }
}

/// What only the shell can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Sign a service account token.
    SignToken {
        /// For whom.
        claims: Claims,
        /// For which audiences; empty means the API server's own.
        audiences: Vec<String>,
        /// For how long, in seconds.
        seconds: i64,
    },
    /// Check a service account token's signature and lifetime.
    VerifyToken {
        /// The token.
        token: String,
        /// For which audiences; empty means the API server's own.
        audiences: Vec<String>,
    },
    /// Read what was.
    Past {
        /// Which keys.
        range: KeyRange,
        /// When.
        at: Moment,
        /// Whether what was compacted away may be told, if it is still on disk.
        compacted: bool,
    },
}

/// What came of the last step.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Nothing yet: the first step.
    Start,
    /// The transaction was decided and is durable.
    Committed(TxnResponse),
    /// The token that was signed.
    Signed(String),
    /// The claims of the token that was checked, unless it is not ours.
    Verified(Option<Claims>),
    /// What was, or why nobody knows.
    Past(Result<PastRange, PastRefusal>),
}

/// What a call wants next.
#[derive(Clone, Debug)]
pub enum Step {
    /// An answer that only the shell can give.
    Ask(Ask),
    /// A transaction.
    Commit(Txn),
    /// To be done.
    Reply(Response),
}

/// A stage that every request passes before it is dispatched.
type Gate = fn(&mut Call, &World<'_>, &RequestInfo) -> Result<(), Status>;

/// The stages, in order. One that is not built yet passes.
const STAGES: [(&str, Gate); 5] = [
    ("authenticate", |call, world, _| {
        call.user = auth::authenticate(world, &call.request.credential)?;
        Ok(())
    }),
    ("audit", pass),
    ("impersonate", pass),
    ("flow control", pass),
    ("authorize", |call, world, info| auth::authorize(world, &call.user, info)),
];

fn pass(_: &mut Call, _: &World<'_>, _: &RequestInfo) -> Result<(), Status> {
    Ok(())
}

/// Where a call stands between two steps.
enum Stage {
    New,
    Writing(Box<Write>),
    Asking(Box<special::Pending>),
    Looking(Box<Look>),
}

/// One request on its way.
pub struct Call {
    request: Request,
    stage: Stage,
    user: User,
}

impl Call {
    /// A call that has not begun.
    pub fn new(mut request: Request) -> Self {
        request.take_moment();
        Self { request, stage: Stage::New, user: User::default() }
    }

    /// Who is asking, once authenticated (for audit and logs).
    pub fn user(&self) -> &User {
        &self.user
    }

    /// Goes on as far as it can.
    pub fn step(&mut self, world: &World<'_>, answer: Answer) -> Step {
        let stage = core::mem::replace(&mut self.stage, Stage::New);
        let next = match (stage, answer) {
            (Stage::New, Answer::Start) => self.begin(world),
            (Stage::Writing(mut write), Answer::Committed(response)) => {
                write.committed(world, response).map(|step| self.keep(Next::Write(write, step)))
            }
            (Stage::Asking(pending), answer) => {
                special::answered(world, *pending, answer).map(|next| self.keep(next))
            }
            (Stage::Looking(look), Answer::Past(found)) => {
                past::answered(world, &self.request, *look, found).map(|next| self.keep(next))
            }
            _ => Err(Status::internal("an answer that nobody waited for")),
        };
        next.unwrap_or_else(|status| Step::Reply(status.into()))
    }

    fn begin(&mut self, world: &World<'_>) -> Result<Step, Status> {
        let info = RequestInfo::parse(&self.request, world.catalog());
        for (_, stage) in STAGES {
            stage(self, world, &info)?;
        }
        let next = self.dispatch(world, info)?;
        Ok(self.keep(next))
    }

    fn dispatch(&self, world: &World<'_>, info: RequestInfo) -> Result<Next, Status> {
        if !self.request.at.is_empty() {
            return past::serve(world, &self.request, info);
        }
        if !info.is_resource() {
            return discovery::serve(world, &self.request, &info).map(Next::Done);
        }
        let Some(kind) = info.kind.clone() else { return Err(Status::no_such_path()) };
        if !serves(&kind, &info) {
            return Err(unserved(&kind, &info));
        }
        if let Some(next) = special::serve(world, &self.request, &info, &self.user)? {
            return Ok(next);
        }
        match info.verb {
            "get" | "list" | "watch" => {
                if let Some(next) = past::older(world, &info, &kind)? {
                    return Ok(next);
                }
                read::serve(world, &self.request, &info, &kind).map(Next::Done)
            }
            _ => {
                let mut write = Box::new(Write::new(world, &self.request, &info, &self.user)?);
                let step = write.start(world)?;
                Ok(Next::Write(write, step))
            }
        }
    }

    fn keep(&mut self, next: Next) -> Step {
        match next {
            Next::Done(response) => Step::Reply(response),
            Next::Write(write, step) => {
                self.stage = Stage::Writing(write);
                step
            }
            Next::Ask(ask, pending) => {
                self.stage = Stage::Asking(pending);
                Step::Ask(ask)
            }
            Next::Look(ask, look) => {
                self.stage = Stage::Looking(look);
                Step::Ask(ask)
            }
        }
    }
}

/// What a stage decided.
pub(crate) enum Next {
    Done(Response),
    Write(Box<Write>, Step),
    Ask(Ask, Box<special::Pending>),
    Look(Ask, Box<Look>),
}

/// The refusal of what [`serves`] does not have: there is no such path, or no such method on it.
pub(crate) fn unserved(kind: &knarr_api::Kind, info: &RequestInfo) -> Status {
    let sub = info.subresource.as_str();
    if !sub.is_empty() && kind.subresource(sub).is_none() {
        return Status::no_such_path();
    }
    let text = "the server does not allow this method on the requested resource";
    let mut status = Status::new(knarr_api::Reason::MethodNotAllowed, text);
    status.details = Some(serde_json::json!({}));
    status
}

pub(crate) fn serves(kind: &knarr_api::Kind, info: &RequestInfo) -> bool {
    let verb = match info.verb {
        "options" => return false,
        verb => verb.to_owned(),
    };
    // Only a collection is posted to, only an object of a name is written.
    let named = !info.object.name.is_empty();
    let fits = match verb.as_str() {
        "create" => !named,
        "update" | "patch" => named,
        _ => true,
    };
    match info.subresource.as_str() {
        "" => fits && kind.serves(&verb),
        name => kind.subresource(name).is_some_and(|sub| sub.verbs.contains(&verb)),
    }
}
