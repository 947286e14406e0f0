//! Who asks, may they, and the way to the store: what all services share.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use knarr_etcd_model::auth::{Auth, Edit, Need, Right};
use knarr_etcdpb::etcdserverpb::ResponseHeader;
use knarr_mvcc::{Answer, Command, KeyRange, LeaseId, RangeEnd, Refusal, Revision};
use knarr_store::{Store, StoreError};
use tonic::{Request, Status};

use crate::alive::Keepalive;
use crate::pages::Metrics;
use crate::refusal::{denied, failed};
use crate::tokens::{TokenError, TokenKind, Tokens};
use crate::wire::signed;

/// What a face is told.
#[derive(Clone, Debug)]
pub struct FaceConfig {
    /// The member's name.
    pub name: String,
    /// What peers would be told to dial.
    pub peer_urls: Vec<String>,
    /// What clients are told to dial.
    pub client_urls: Vec<String>,
    /// The most operations of one list of a transaction.
    pub max_txn_ops: usize,
    /// The largest request, in bytes.
    pub max_request_bytes: usize,
    /// Keys with this prefix belong to somebody else: they are read here, never written.
    pub protected: Option<Bytes>,
    /// What those get who log in.
    pub tokens: TokenKind,
    /// The work factor of password hashes, 4 to 31.
    pub bcrypt_cost: u32,
    /// How often a quiet watcher that wants to hears how far it has come.
    pub progress_interval: Duration,
    /// When a connection of HTTP/2 is asked whether somebody is there.
    pub keepalive: Keepalive,
    /// The most calls that are under way on one.
    pub max_streams: u32,
    /// Whether there is a gateway that makes calls of JSON.
    pub gateway: bool,
    /// Whether it is measured how long calls take.
    pub timed: bool,
}

impl Default for FaceConfig {
    fn default() -> Self {
        Self {
            name: "default".into(),
            peer_urls: Vec::new(),
            client_urls: Vec::new(),
            max_txn_ops: 128,
            max_request_bytes: 3 << 19,
            protected: None,
            tokens: TokenKind::default(),
            bcrypt_cost: bcrypt::DEFAULT_COST,
            progress_interval: Duration::from_secs(600),
            keepalive: Keepalive::default(),
            max_streams: u32::MAX,
            gateway: true,
            timed: false,
        }
    }
}

/// The common name of the certificate that a connection was opened with.
#[derive(Clone, Debug)]
pub(crate) struct PeerName(pub(crate) Arc<str>);

/// Who asks: nobody, or a user with the revision of users and roles that its token was made at.
#[derive(Clone, Debug, Default)]
pub(crate) struct Caller(Option<(String, Option<u64>)>);

/// etcd's faces of one store.
#[derive(Debug)]
pub struct Face {
    pub(crate) store: Store,
    pub(crate) config: FaceConfig,
    pub(crate) tokens: Tokens,
    pub(crate) metrics: Metrics,
    auth: ArcSwap<Auth>,
}

impl Face {
    /// Faces of a store.
    ///
    /// # Errors
    /// [`TokenError`] when keys for tokens are of no use.
    pub fn new(store: Store, config: FaceConfig) -> Result<Arc<Self>, TokenError> {
        let auth = store.read(|keyspace, _| Auth::read(keyspace.settings()));
        Ok(Arc::new(Self {
            tokens: Tokens::new(&config.tokens)?,
            metrics: Metrics::new(config.timed),
            auth: ArcSwap::from_pointee(auth),
            store,
            config,
        }))
    }

    /// Users and roles as they are now.
    pub(crate) fn auth(&self) -> Arc<Auth> {
        let known = self.auth.load_full();
        if known.settings() == self.store.settings_version() {
            return known;
        }
        let fresh = Arc::new(self.store.read(|keyspace, _| Auth::read(keyspace.settings())));
        self.auth.store(fresh.clone());
        fresh
    }

    /// Who sent a request: by its token, or else by the certificate of its connection.
    pub(crate) fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let auth = self.auth();
        if !auth.enabled() {
            return Ok(Caller::default());
        }
        let metadata = request.metadata();
        let token = metadata.get("token").or_else(|| metadata.get("authorization"));
        if let Some(token) = token.and_then(|token| token.to_str().ok()) {
            let token = token.strip_prefix("Bearer ").unwrap_or(token);
            return self.tokens.user(token).map(|user| Caller(Some(user))).map_err(denied);
        }
        let name = request.extensions().get::<PeerName>();
        Ok(Caller(name.map(|name| (name.0.to_string(), None))))
    }

    /// Judges whether somebody may do all of this.
    pub(crate) fn judge(&self, auth: &Auth, caller: &Caller, needs: &[Need]) -> Result<(), Status> {
        self.unprotected(needs)?;
        auth.permits(caller.name(auth)?, needs).map_err(denied)
    }

    fn unprotected(&self, needs: &[Need]) -> Result<(), Status> {
        let Some(prefix) = &self.config.protected else { return Ok(()) };
        let held = KeyRange::prefix(prefix.clone());
        let touches = |need: &Need| need.right == Right::Write && meet(&need.range, &held);
        if !needs.iter().any(touches) {
            return Ok(());
        }
        Err(Status::permission_denied(format!(
            "etcdserver: permission denied: keys below {} belong to the API server; start with \
             --unsafe-registry-writes to write them all the same",
            String::from_utf8_lossy(prefix)
        )))
    }

    /// Judges whether somebody may administrate.
    pub(crate) fn administrates(&self, auth: &Auth, caller: &Caller) -> Result<(), Status> {
        auth.administrates(caller.name(auth)?).map_err(denied)
    }

    /// Judges a command by users and roles, and runs it on exactly those.
    pub(crate) async fn commit(
        &self,
        caller: &Caller,
        command: Command,
        judge: impl Fn(&Auth) -> Result<(), Status>,
    ) -> Result<Answer, Status> {
        loop {
            let auth = self.auth();
            judge(&auth)?;
            if !auth.enabled() {
                return self.store.command(command).await.map_err(failed);
            }
            let (settings, command) = (auth.settings(), Box::new(command.clone()));
            match self.store.command(Command::Under { settings, command }).await {
                // Somebody else's rights changed meanwhile, or the caller's: it is judged anew.
                Err(StoreError::Refused(Refusal::SettingsChanged(_))) => {
                    tracing::debug!(?caller, "judged again: users or roles changed");
                }
                result => return result.map_err(failed),
            }
        }
    }

    /// Changes users or roles.
    pub(crate) async fn edit(&self, caller: &Caller, edit: Edit) -> Result<(), Status> {
        loop {
            let auth = self.auth();
            self.administrates(&auth, caller)?;
            let Some(change) = auth.edit(edit.clone()).map_err(denied)? else { return Ok(()) };
            match self.store.command(Command::Settings(change)).await {
                Err(StoreError::Refused(Refusal::SettingsChanged(_))) => {}
                result => return result.map(drop).map_err(failed),
            }
        }
    }

    /// What touching all keys of a lease needs.
    pub(crate) fn lease_needs(&self, id: LeaseId, right: Right) -> Vec<Need> {
        let need = |key: &Bytes| Need { right, range: KeyRange::single(key.clone()) };
        self.store.read(|keyspace, _| {
            keyspace.lease(id).map_or_else(Vec::new, |lease| lease.keys.iter().map(need).collect())
        })
    }

    /// The head of an answer at a revision.
    pub(crate) fn header(&self, revision: Revision) -> ResponseHeader {
        let identity = self.store.identity();
        ResponseHeader {
            cluster_id: identity.cluster,
            member_id: identity.member,
            revision: signed(revision.0),
            raft_term: self.store.term(),
        }
    }

    /// The head of an answer as of now.
    pub(crate) fn header_now(&self) -> Option<ResponseHeader> {
        Some(self.header(self.store.durable()))
    }
}

impl Caller {
    /// The name to judge by.
    fn name(&self, auth: &Auth) -> Result<Option<&str>, Status> {
        let Some((name, revision)) = &self.0 else { return Ok(None) };
        if auth.enabled() && revision.is_some_and(|revision| revision < auth.revision()) {
            return Err(Status::invalid_argument("etcdserver: revision of auth store is old"));
        }
        Ok(Some(name))
    }

    /// Whether it is this user.
    pub(crate) fn is(&self, name: &str) -> bool {
        self.0.as_ref().is_some_and(|(user, _)| user == name)
    }

    /// Whether it has a role.
    pub(crate) fn has_role(&self, auth: &Auth, role: &str) -> bool {
        self.0.as_ref().is_some_and(|(user, _)| auth.has_role(user, role))
    }
}

/// Whether two ranges have a key in common.
fn meet(a: &KeyRange, b: &KeyRange) -> bool {
    starts_before_end(&a.start, b) && starts_before_end(&b.start, a)
}

fn starts_before_end(start: &Bytes, range: &KeyRange) -> bool {
    match &range.end {
        RangeEnd::Single => *start <= range.start,
        RangeEnd::Before(end) => start < end,
        RangeEnd::Unbounded => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use knarr_etcd_model::auth::range;

    #[test]
    fn ranges_meet_where_they_share_a_key() {
        let parse = |word: &'static str| match word.split_once("..") {
            None => range(word.into(), Bytes::new()),
            Some((start, "")) => range(start.into(), "\0".into()),
            Some((start, end)) => range(start.into(), end.into()),
        };
        let cases = [
            ("a", "a", true),
            ("a", "b", false),
            ("a..c", "b", true),
            ("a..c", "c", false),
            ("a..c", "b..d", true),
            ("a..c", "c..d", false),
            ("c..d", "a..c", false),
            ("a..", "z", true),
            ("b..", "a", false),
            ("a..", "b..c", true),
        ];
        for (a, b, expected) in cases {
            assert_eq!(meet(&parse(a), &parse(b)), expected, "{a} {b}");
            assert_eq!(meet(&parse(b), &parse(a)), expected, "{b} {a}");
        }
    }
}
