//! A cluster without IO: the pipeline over a keyspace in memory, a clock that is turned by hand,
//! randomness that is counted.

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use knarr_mvcc::{Command, KeyRange, Keyspace, LeaseId, Op, Revision, Txn};
use knarr_registry::{
    Answer, Ask, Body, Call, Claims, Config, Credential, Method, Moment, PastRange, PastRefusal,
    Request, Response, Snapshot, Step, User, Views, WatchSpec, WatchStart, World, bootstrap,
};
use knarr_schema::Schema;
use serde_json::{Value, json};

/// The revision of the first write of every script.
const FIRST_REVISION: u64 = 1001;

/// A request in the words of a script.
#[derive(Clone)]
pub struct Sent {
    pub method: Method,
    pub target: String,
    /// Name and groups, `-` for nobody, `token:…` for a bearer token.
    pub user: String,
    pub accept: String,
    pub content_type: String,
    pub body: String,
    /// JSON pointers into the answer; all of it when not given.
    pub show: Option<Vec<String>>,
}

impl Sent {
    pub fn new(method: Method, target: &str) -> Sent {
        let json = || "application/json".to_owned();
        Sent {
            method,
            target: target.into(),
            user: "admin system:masters".into(),
            accept: json(),
            content_type: json(),
            body: String::new(),
            show: None,
        }
    }

    fn credential(&self) -> Credential {
        if let Some(token) = self.user.strip_prefix("token:") {
            return Credential::Token(token.into());
        }
        let mut words = self.user.split_whitespace();
        match words.next() {
            None | Some("-") => Credential::None,
            Some(name) => Credential::Component(User::new(name, &words.collect::<Vec<_>>())),
        }
    }

    fn request(&self) -> Request {
        let (path, query) = self.target.split_once('?').unwrap_or((&self.target, ""));
        let mut request = Request::new(self.method, path, self.credential());
        request.query = query.into();
        request.accept = self.accept.clone();
        request.content_type = self.content_type.clone();
        request.body = Bytes::from(self.body.clone());
        request
    }
}

pub struct Cluster {
    pub keyspace: Keyspace,
    views: Views,
    config: Config,
    now: Timestamp,
    seed: u64,
    index: u64,
    watch: Option<(WatchSpec, Revision)>,
    asked: Vec<String>,
}

impl Cluster {
    /// A cluster with its bootstrap objects and the account that Pods run as.
    pub fn new() -> Cluster {
        let mut cluster = Cluster {
            keyspace: Keyspace::new(),
            views: Views::new(Schema::builtin()),
            config: Config {
                version: "v1.36.0-knarr".into(),
                issuer: "https://kubernetes.default.svc".into(),
                advertise: "10.0.0.1:6443".into(),
                service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
                node_ports: 30000..=32767,
            },
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            seed: 0,
            index: 0,
            watch: None,
            asked: Vec::new(),
        };
        bootstrap::objects(&cluster.config).iter().for_each(|object| cluster.create(object));
        cluster.begin_at(FIRST_REVISION - 1);
        cluster.create(&json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "default", "namespace": "default"}}));
        cluster
    }

    /// Lets revisions and seeds pass, so that no script tells how many bootstrap objects there are.
    fn begin_at(&mut self, revision: u64) {
        while self.keyspace.revision() < Revision(revision - 1) {
            self.index += 1;
            let range = KeyRange::single(Bytes::from_static(b"/passing"));
            let (key, value) =
                (Bytes::from_static(b"/passing"), Bytes::from(self.index.to_string()));
            let put = Op::Put { key, value, lease: LeaseId(0) };
            let success = match self.keyspace.revision() == Revision(revision - 2) {
                true => vec![Op::Delete { range }],
                false => vec![put],
            };
            let txn = Txn { compare: vec![], success, failure: vec![] };
            self.keyspace.apply(self.index, &Command::Txn(txn)).unwrap();
        }
        self.seed = revision;
    }

    pub fn wait(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    /// The object at a path.
    pub fn get(&mut self, path: &str) -> Value {
        let response = self.call(Sent::new(Method::Get, path).request());
        assert_eq!(response.code, 200, "{path}");
        serde_json::from_slice(&response.bytes().unwrap()).unwrap()
    }

    /// Creates an object as an administrator.
    pub fn create(&mut self, object: &Value) {
        let word = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or("");
        let (api_version, namespace) = (word("/apiVersion"), word("/metadata/namespace"));
        let plural = self.views.catalog.kind(api_version, word("/kind")).unwrap().plural.clone();
        let root = if api_version.contains('/') { "apis" } else { "api" };
        let path = match namespace {
            "" => format!("/{root}/{api_version}/{plural}"),
            namespace => format!("/{root}/{api_version}/namespaces/{namespace}/{plural}"),
        };
        let mut sent = Sent::new(Method::Post, &path);
        sent.body = object.to_string();
        let response = self.call(sent.request());
        assert_eq!(response.code, 201, "{}", String::from_utf8_lossy(&response.bytes().unwrap()));
    }

    /// Carries a request through the pipeline and words the answer.
    pub fn send(&mut self, sent: &Sent) -> String {
        let response = self.call(sent.request());
        let mut lines = core::mem::take(&mut self.asked);
        lines.extend(response.warnings.iter().map(|warning| format!("warning: {warning}")));
        lines.push(match &response.body {
            Body::Watch(spec) => self.open(spec.clone()),
            Body::Onward(onward) => format!("{} {onward:?}", response.code),
            Body::Own(path) => format!("{} own {path}", response.code),
            Body::Chunks(_) => worded(&response, sent.show.as_deref()),
        });
        lines.join("\n")
    }

    fn call(&mut self, request: Request) -> Response {
        let mut call = Call::new(request);
        let mut answer = Answer::Start;
        loop {
            self.seed += 1;
            answer = match self.step(&mut call, answer) {
                Step::Reply(response) => return response,
                Step::Ask(ask) => self.answer(ask),
                Step::Commit(txn) => self.commit(txn),
            };
        }
    }

    fn step(&mut self, call: &mut Call, answer: Answer) -> Step {
        let snapshot = Snapshot::new(&self.keyspace, self.keyspace.revision());
        self.views.advance(snapshot);
        let world = World {
            snapshot,
            views: &self.views,
            config: &self.config,
            now: self.now,
            seed: scattered(self.seed),
        };
        call.step(&world, answer)
    }

    fn commit(&mut self, txn: Txn) -> Answer {
        self.index += 1;
        match self.keyspace.apply(self.index, &Command::Txn(txn)).unwrap() {
            knarr_mvcc::Answer::Txn(response) => Answer::Committed(response),
            other => panic!("{other:?}"),
        }
    }

    /// Two requests that decide the same on the same state, with the same randomness; then both
    /// go on, the second first.
    pub fn race(&mut self, first: &Sent, second: &Sent) -> [(u16, Value); 2] {
        let mut calls = [first, second].map(|sent| Call::new(sent.request()));
        self.seed += 1;
        let steps = [0, 1].map(|at| self.step(&mut calls[at], Answer::Start));
        let mut answers = steps.map(|step| match step {
            Step::Commit(txn) => Some(txn),
            other => panic!("{other:?} is no decision"),
        });
        let mut finish = |cluster: &mut Cluster, at: usize| {
            let mut answer = cluster.commit(answers[at].take().unwrap());
            loop {
                cluster.seed += 1;
                answer = match cluster.step(&mut calls[at], answer) {
                    Step::Commit(txn) => cluster.commit(txn),
                    Step::Reply(response) => {
                        let body = serde_json::from_slice(&response.bytes().unwrap()).unwrap();
                        return (response.code, body);
                    }
                    other => panic!("{other:?}"),
                };
            }
        };
        let late = finish(self, 1);
        let early = finish(self, 0);
        [early, late]
    }

    /// `namespace/name/uid` passes for the token of that account.
    fn answer(&mut self, ask: Ask) -> Answer {
        self.asked.push(format!("ask: {ask:?}"));
        match ask {
            Ask::Past { range, at, .. } => Answer::Past(self.look_back(&range, at)),
            Ask::SignToken { .. } => Answer::Signed("a-signed-token".into()),
            Ask::VerifyToken { token, .. } => {
                let parts: Vec<&str> = token.split('/').collect();
                Answer::Verified(match parts[..] {
                    [namespace, name, uid] => Some(Claims {
                        namespace: namespace.into(),
                        name: name.into(),
                        uid: uid.into(),
                        ..Claims::default()
                    }),
                    _ => None,
                })
            }
        }
    }

    /// The past of this cluster: a moment is the revision that many seconds after 1970.
    fn look_back(&self, range: &KeyRange, at: Moment) -> Result<PastRange, PastRefusal> {
        let (revision, time) = match at {
            Moment::Revision(revision) => (revision, None),
            Moment::Time(time) => (Revision(time.as_second() as u64), Some(time)),
        };
        match revision > self.keyspace.revision() {
            true => Err(PastRefusal::Future(self.keyspace.revision())),
            false if revision < self.keyspace.floor() => {
                Err(PastRefusal::Gone("history begins later".into()))
            }
            false => Ok(PastRange { revision, time, kvs: self.keyspace.held_at(range, revision) }),
        }
    }

    fn open(&mut self, spec: WatchSpec) -> String {
        let at = self.keyspace.revision();
        let mut out = vec![Bytes::from_static(b"200 watch\n")];
        let after = match spec.start {
            WatchStart::After(revision) => revision,
            WatchStart::Initial => {
                for seen in spec.initial(Snapshot::new(&self.keyspace, at)) {
                    spec.encode(&seen, self.now, &mut out);
                }
                if spec.mark_initial {
                    spec.bookmark(at, true, &mut out);
                }
                at
            }
        };
        self.watch = Some((spec, after));
        String::from_utf8(out.concat()).unwrap()
    }

    /// What the watch has seen since it was looked at last.
    pub fn events(&mut self) -> String {
        let (spec, after) = self.watch.as_mut().expect("WATCH comes before EVENTS");
        let upto = self.keyspace.revision();
        let mut out = Vec::new();
        match self.keyspace.events(&spec.range, *after, upto, usize::MAX) {
            Ok(batch) => {
                for seen in batch.events.iter().filter_map(|event| spec.see(event)) {
                    spec.encode(&seen, self.now, &mut out);
                }
            }
            Err(compacted) => out.push(spec.expired(*after, compacted.oldest)),
        }
        *after = upto;
        if spec.bookmarks {
            spec.bookmark(upto, false, &mut out);
        }
        String::from_utf8(out.concat()).unwrap()
    }
}

/// 128 bits that look random, the same for the same number (SplitMix64).
fn scattered(number: u64) -> u128 {
    let half = |seed: u64| {
        let mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u128::from(mixed ^ (mixed >> 31))
    };
    half(number) << 64 | half(number + 1_000_000)
}

/// Code and body; a refusal as reason, message and one line for each cause.
fn worded(response: &Response, show: Option<&[String]>) -> String {
    let bytes = response.bytes().unwrap();
    let Ok(tree) = serde_json::from_slice::<Value>(&bytes) else {
        return format!("{} {}", response.code, String::from_utf8_lossy(&bytes));
    };
    let code = response.code;
    match show {
        Some(pointers) if code < 400 => {
            let parts = pointers.iter().map(|pointer| match tree.pointer(pointer) {
                Some(value) => format!("{pointer} {value}"),
                None => format!("{pointer} -"),
            });
            [code.to_string()].into_iter().chain(parts).collect::<Vec<_>>().join("\n")
        }
        None if code < 400 => format!("{code} {}", String::from_utf8_lossy(&bytes).trim_end()),
        _ => refusal(code, &tree),
    }
}

fn refusal(code: u16, status: &Value) -> String {
    let mut lines = vec![format!("{code} {}", status["reason"].as_str().unwrap_or("-"))];
    let causes = status["details"]["causes"].as_array();
    let named = causes.filter(|causes| causes.iter().all(|cause| cause["field"].is_string()));
    match named.filter(|causes| !causes.is_empty()) {
        Some(causes) => lines.extend(causes.iter().map(|cause| {
            let word = |key: &str| cause[key].as_str().unwrap_or_default();
            format!("  {} {}: {}", word("reason"), word("field"), word("message"))
        })),
        None => lines.push(format!("  {}", status["message"].as_str().unwrap_or_default())),
    }
    if let Some(details) = status.get("details").filter(|_| code != 422) {
        lines.push(format!("  {details}"));
    }
    lines.join("\n")
}
