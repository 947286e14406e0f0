//! Golden scripts: `> ` lines are asked, the lines below them are the answers. `KNARR_BLESS=1`
//! writes the answers anew: etcd's where an etcd can give them.
//!
//! `> WHO PATH JSON` posts to `/v3/PATH` as each of `a,b,-` (`-` has no token), with bytes written
//! as text; `> WHO PATH N JSON…` sends a stream of messages and takes the first N answers; `> raw
//! PATH BODY` sends the body as it is and shows all that comes. `> login NAME PASSWORD` is for a
//! token, `> forge NAME TOKEN` makes one up. Of our own: `> serve OPTION=…` begins again with
//! settings, `> advance MS` moves the clock, `> restart` opens the same disk again, `> own-put KEY
//! lease=ID` writes past the face.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use knarr_etcd::FaceConfig;
use knarr_mvcc::{LeaseId, Op, Revision, Txn};
use knarr_store::sim::{SimClock, SimDisk};
use knarr_store::{Store, StoreConfig};
use serde_json::Value;

use crate::etcd::Etcd;
use crate::served::{Client, Served, quick};

/// Names of fields that are bytes.
const BYTES: &[&str] = &["key", "value", "range_end"];

#[tokio::test(flavor = "multi_thread")]
async fn scripts_that_etcd_answers_the_same() {
    for path in scripts("etcd") {
        play(&path, Played::own(), false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_on_the_etcd_itself() {
    for path in scripts("etcd") {
        let etcd = Etcd::start().await;
        let address = etcd.endpoint().trim_start_matches("http://").parse().unwrap();
        play(&path, Played::at(address), true).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_of_our_own() {
    for path in scripts("own") {
        play(&path, Played::own(), true).await;
    }
}

fn scripts(kind: &str) -> Vec<PathBuf> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/face/golden").join(kind);
    let mut paths: Vec<_> = dir.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "no scripts in {}", dir.display());
    paths
}

async fn play(path: &PathBuf, mut played: Played, judge: bool) {
    let text = std::fs::read_to_string(path).unwrap();
    let mut out = String::new();
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            let answer = tokio::time::timeout(Duration::from_secs(20), played.run(command)).await;
            let answer = answer.unwrap_or_else(|_| panic!("{}: {line}: no answer", path.display()));
            writeln!(out, "{line}\n{answer}").unwrap();
        } else if line.is_empty() || line.starts_with('#') {
            writeln!(out, "{line}").unwrap();
        }
    }
    if judge && std::env::var_os("KNARR_BLESS").is_some() {
        return std::fs::write(path, out).unwrap();
    }
    let differing = text.lines().zip(out.lines()).find(|(wanted, is)| wanted != is);
    assert!(text == out, "{}: {differing:?} in\n{out}", path.display());
}

/// What a script is played on.
struct Played {
    address: SocketAddr,
    tokens: HashMap<String, String>,
    own: Option<Own>,
}

struct Own {
    disk: SimDisk,
    clock: Arc<SimClock>,
    store: Store,
    served: Option<Served>,
    face: FaceConfig,
    config: StoreConfig,
}

impl Own {
    fn open(disk: SimDisk, face: FaceConfig, config: StoreConfig) -> Self {
        let clock = Arc::<SimClock>::default();
        let store = Store::open(Arc::new(disk.clone()), clock.clone(), config.clone()).unwrap();
        Self { disk, clock, store, served: None, face, config }
    }
}

impl Own {
    /// Past the face: a key under a lease.
    async fn write(&self, what: &str) -> String {
        let (key, lease) = what.split_once(" lease=").unwrap();
        let lease = LeaseId(lease.parse().unwrap());
        self.store.lease_grant(lease, 600).await.unwrap();
        self.store.txn(put(key, lease)).await.unwrap();
        "written".to_owned()
    }
}

fn put(key: &str, lease: LeaseId) -> Txn {
    let (key, value) = (key.to_owned().into(), "x".into());
    Txn { success: vec![Op::Put { key, value, lease }], ..Txn::default() }
}

impl Played {
    fn at(address: SocketAddr) -> Self {
        Self { address, tokens: HashMap::new(), own: None }
    }

    fn own() -> Self {
        let own = Own::open(SimDisk::default(), quick(), StoreConfig::default());
        Self { own: Some(own), ..Self::at(([127, 0, 0, 1], 0).into()) }
    }

    async fn run(&mut self, line: &str) -> String {
        let (who, rest) = line.split_once(' ').unwrap_or((line, ""));
        match who {
            "login" => return self.log_in(rest).await,
            "forge" => {
                let (name, token) = rest.split_once(' ').unwrap();
                self.tokens.insert(name.to_owned(), token.to_owned());
                return "forged".to_owned();
            }
            "serve" => return self.serve(rest),
            "restart" => return self.restart().await,
            "own-put" => return self.own.as_ref().unwrap().write(rest).await,
            "advance" => {
                let own = self.own.as_ref().unwrap();
                own.clock.advance(rest.parse().unwrap());
                own.store.wake();
                // Whatever is due now comes before the answer to this.
                own.store.compact(Revision(0)).await.unwrap_err();
                return "advanced".to_owned();
            }
            _ => {}
        }
        let (path, body) = rest.split_once(' ').unwrap_or((rest, ""));
        if who == "raw" {
            let mut answer = self.client("-").await.post(path, body.to_owned()).await.unwrap();
            let text = answer.rest().await;
            return format!("{} {}", answer.code, without_ids(text.trim_end()));
        }
        let (count, body) = match body.split_once(' ') {
            Some((count, body)) if count.parse::<usize>().is_ok() => (count.parse().unwrap(), body),
            _ => (0, body),
        };
        let mut messages = String::new();
        for message in serde_json::Deserializer::from_str(body).into_iter::<Value>() {
            let mut message = message.unwrap_or_else(|error| panic!("{line}: {error}"));
            each_bytes(&mut message, path, &|text| BASE64_STANDARD.encode(text));
            messages += &message.to_string();
        }
        let mut answers = Vec::new();
        for one in who.split(',') {
            let answer = self.ask(one, path, &messages, count).await;
            answers.push(if who.contains(',') { format!("{one}: {answer}") } else { answer });
        }
        answers.join("\n")
    }

    async fn ask(&mut self, who: &str, path: &str, body: &str, count: usize) -> String {
        let client = self.client(who).await;
        let mut answer = match client.post(path, body.to_owned()).await {
            Ok(answer) => answer,
            Err(why) => panic!("{who} {path} {body}: {why}"),
        };
        if count == 0 {
            return show(answer.code, &answer.rest().await);
        }
        let mut lines = Vec::new();
        while lines.len() < count
            && let Some(line) = answer.line().await
        {
            lines.push(show(answer.code, &line));
        }
        lines.join("\n")
    }

    async fn client(&mut self, who: &str) -> Client {
        if let Some(own) = &mut self.own {
            if own.served.is_none() {
                own.served = Some(Served::new(&own.store, own.face.clone(), None).await);
            }
            self.address = own.served.as_ref().unwrap().address;
        }
        let token = (who != "-").then(|| self.tokens[who].clone());
        Client { address: self.address, tls: None, token }
    }

    async fn log_in(&mut self, rest: &str) -> String {
        let (name, password) = rest.split_once(' ').unwrap();
        let body = serde_json::json!({ "name": name, "password": password });
        let (code, answer) = self.client("-").await.ask("auth/authenticate", &body).await;
        match answer["token"].as_str() {
            None => show(code, &answer.to_string()),
            Some(token) => {
                self.tokens.insert(name.to_owned(), token.to_owned());
                "ok".to_owned()
            }
        }
    }

    fn serve(&mut self, options: &str) -> String {
        let (mut face, mut config) = (quick(), StoreConfig::default());
        for option in options.split_whitespace() {
            let (name, value) = option.split_once('=').unwrap();
            let number = || value.parse::<usize>().unwrap();
            match name {
                "protected" => face.protected = Some(value.to_owned().into()),
                "max-txn-ops" => face.max_txn_ops = number(),
                "max-request-bytes" => face.max_request_bytes = number(),
                "memory" => config.memory_bytes = number(),
                "command" => config.command_bytes = number(),
                other => panic!("unknown option {other}"),
            }
        }
        self.own = Some(Own::open(SimDisk::default(), face, config));
        "served".to_owned()
    }

    async fn restart(&mut self) -> String {
        let Own { disk, store, served, face, config, .. } = self.own.take().unwrap();
        drop(served);
        store.close().await;
        self.own = Some(Own::open(disk, face, config));
        "restarted".to_owned()
    }
}

/// One answer: where it was, and what it says.
fn show(code: u16, text: &str) -> String {
    let Ok(answer) = serde_json::from_str::<Value>(text) else {
        return format!("{code} {}", text.trim_end());
    };
    let stream = answer.get("result").is_some() || answer["error"].is_object();
    let mut answer = match stream {
        false => answer,
        true => answer.get("result").or(answer.get("error")).unwrap().clone(),
    };
    if let Some(message) = answer["message"].as_str() {
        return format!("refused: {} {message}", answer["code"]);
    }
    let revision = answer["header"]["revision"].as_str().unwrap_or("0").to_owned();
    strip(&mut answer);
    if let Some(Value::String(why)) = answer.get_mut("cancel_reason") {
        // etcd 3.4 says more.
        *why = why.rsplit(" desc = ").next().unwrap().to_owned();
    }
    each_bytes(&mut answer, "", &|text| {
        String::from_utf8_lossy(&BASE64_STANDARD.decode(text).unwrap()).into_owned()
    });
    format!("@{revision} {answer}")
}

/// Without what is different each time.
fn strip(answer: &mut Value) {
    match answer {
        Value::Object(fields) => {
            fields.remove("header");
            fields.values_mut().for_each(strip);
        }
        Value::Array(values) => values.iter_mut().for_each(strip),
        _ => {}
    }
}

/// Turns every field that is bytes.
fn each_bytes(value: &mut Value, path: &str, turn: &impl Fn(&str) -> String) {
    let queue = path.starts_with("lock/") || path.starts_with("election/");
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text)
                        if BYTES.contains(&name.as_str()) || queue && name == "name" =>
                    {
                        *text = turn(text);
                    }
                    value => each_bytes(value, path, turn),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| each_bytes(value, path, turn)),
        _ => {}
    }
}

/// The numbers of cluster and member are random.
fn without_ids(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = ["\"cluster_id\":\"", "\"member_id\":\"", "\"raft_term\":\""]
        .iter()
        .filter_map(|name| rest.find(name).map(|at| at + name.len()))
        .min()
    {
        let end = at + rest[at..].find('"').unwrap();
        out.push_str(&rest[..at]);
        out.push('N');
        rest = &rest[end..];
    }
    out + rest
}
