//! Certificates that are changed while an etcd is in use: files are read again when it no longer
//! answers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use knarr_pki::{Authority, Identity, Usage};
use tempfile::TempDir;

use super::*;

/// An etcd that speaks TLS only, to clients of its authority.
struct Secured {
    dir: TempDir,
    endpoint: String,
    process: Child,
}

/// Everybody's certificates, all of a new authority.
fn certify(dir: &Path) {
    let authority = tempfile::tempdir_in("/var/tmp").unwrap();
    let authority = Authority::load_or_create(authority.path()).unwrap();
    let addresses = vec!["127.0.0.1".parse().unwrap()];
    for (name, usage) in [("server", Usage::Server), ("client", Usage::Client)] {
        let identity =
            Identity { name: name.into(), addresses: addresses.clone(), ..Identity::default() };
        let signed = authority.issue(&identity, usage).unwrap();
        fs::write(dir.join(format!("{name}.crt")), signed.certificate).unwrap();
        fs::write(dir.join(format!("{name}.key")), signed.key).unwrap();
    }
    fs::write(dir.join("ca.crt"), authority.certificate()).unwrap();
}

impl Secured {
    fn start() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        certify(dir.path());
        let endpoint = etcd::free().replace("http://", "https://");
        let process = run(dir.path(), &endpoint);
        Self { dir, endpoint, process }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn stop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    async fn connect(&self) -> Result<Store, StoreError> {
        let client = Some((self.file("client.crt"), self.file("client.key")));
        let external = ExternalConfig {
            endpoints: vec![self.endpoint.clone()],
            tls: Tls { authority: Some(self.file("ca.crt")), client },
            scope: Scope::everything(),
            compact_every: Duration::ZERO,
        };
        Store::connect(external, StoreConfig::default()).await
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(dir: &Path, endpoint: &str) -> Child {
    let peer = etcd::free();
    let mut command = Command::new("etcd");
    command.arg("--data-dir").arg(dir.join("data"));
    command.args(["--listen-client-urls", endpoint, "--advertise-client-urls", endpoint]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.arg(format!("--initial-cluster=default={peer}"));
    command.arg("--cert-file").arg(dir.join("server.crt"));
    command.arg("--key-file").arg(dir.join("server.key"));
    command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(dir.join("ca.crt"));
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn new_certificates_are_taken_up() {
    let mut etcd = Secured::start();
    let store = etcd.connect().await.unwrap();
    let first = store.txn(put("a", "1")).await.unwrap().revision;
    let mut watch = store.watch(KeyRange::single("a"), first);
    etcd.stop();
    // Nobody knows the old ones any more, nor do they know anybody.
    certify(etcd.dir.path());
    etcd.process = run(etcd.dir.path(), &etcd.endpoint);
    store.fresh().await.unwrap();
    let second = store.txn(put("a", "2")).await.unwrap().revision;
    assert_eq!(watch.next().await.unwrap().events[0].revision, second);
    // What is not there, or of no use, is named.
    fs::write(etcd.file("client.crt"), "no certificate").unwrap();
    etcd.connect().await.unwrap_err();
    fs::remove_file(etcd.file("client.crt")).unwrap();
    let error = etcd.connect().await.unwrap_err().to_string();
    assert!(error.contains("client.crt"), "{error}");
}
