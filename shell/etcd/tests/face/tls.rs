//! Certificates: whose are let in, who they say one is, and that new files count at once.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use knarr_etcd::{TlsFiles, TlsKeeper};
use knarr_etcdpb::etcdserverpb as pb;
use knarr_pki::{Authority, Identity, Signed, Usage, client_config};
use knarr_store::Store;
use pb::kv_client::KvClient;
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Code;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};

use crate::served::{Client, Served, quick};

struct Place {
    dir: TempDir,
    ours: Authority,
    theirs: Authority,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let authority = |name: &str| {
            fs::create_dir(dir.path().join(name)).unwrap();
            Authority::load_or_create(&dir.path().join(name)).unwrap()
        };
        let (ours, theirs) = (authority("ours"), authority("theirs"));
        Self { dir, ours, theirs }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// Puts a server's certificate of an authority where it is looked for.
    fn server(&self, authority: &Authority) {
        let identity = Identity { dns: vec!["localhost".into()], ..named("etcd") };
        let signed = authority.issue(&identity, Usage::Server).unwrap();
        replace(&self.path("server.key"), &signed.key);
        replace(&self.path("server.crt"), &signed.certificate);
    }

    fn keeper(&self, client_ca: bool) -> Arc<TlsKeeper> {
        replace(&self.path("client-ca.crt"), self.ours.certificate());
        Arc::new(TlsKeeper::open(self.files(client_ca)).unwrap())
    }

    fn files(&self, client_ca: bool) -> TlsFiles {
        TlsFiles {
            certificate: self.path("server.crt"),
            key: self.path("server.key"),
            client_ca: client_ca.then(|| self.path("client-ca.crt")),
        }
    }
}

fn named(name: &str) -> Identity {
    Identity { name: name.into(), ..Identity::default() }
}

/// As a rotation does it: another file under the same name.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

/// Who trusts one authority and shows a certificate of another.
fn who(served: &Served, trusted: &Authority, shown: Option<&Signed>) -> Client {
    let tls = client_config(trusted.certificate(), shown).unwrap();
    Client { tls: Some(tls), ..served.client() }
}

/// Whether somebody is let in.
async fn enters(client: &Client) -> bool {
    client.post("maintenance/status", "{}").await.is_ok()
}

#[tokio::test]
async fn without_an_authority_of_clients_everybody_is_let_in_by_tls_only() {
    let place = Place::new();
    place.server(&place.ours);
    let served = Served::new(&Store::in_memory(), quick(), Some(place.keeper(false))).await;
    assert!(enters(&who(&served, &place.ours, None)).await);
    assert!(!enters(&who(&served, &place.theirs, None)).await, "the client judges the server");
    assert!(!enters(&served.client()).await, "without TLS");
}

#[tokio::test]
async fn with_one_who_shows_none_or_another_s_or_an_old_one_stays_out() {
    let place = Place::new();
    place.server(&place.ours);
    let served = Served::new(&Store::in_memory(), quick(), Some(place.keeper(true))).await;
    let ann = place.ours.issue(&named("ann"), Usage::Client).unwrap();
    let foreign = place.theirs.issue(&named("ann"), Usage::Client).unwrap();
    let server = place.ours.issue(&named("ann"), Usage::Server).unwrap();
    assert!(enters(&who(&served, &place.ours, Some(&ann))).await);
    assert!(!enters(&who(&served, &place.ours, None)).await);
    assert!(!enters(&who(&served, &place.ours, Some(&foreign))).await);
    assert!(!enters(&who(&served, &place.ours, Some(&expired(&place)))).await);
    assert!(!enters(&who(&served, &place.ours, Some(&server))).await);
}

/// A certificate of ours whose time is over.
fn expired(place: &Place) -> Signed {
    let pem = fs::read_to_string(place.path("ours").join("ca.key")).unwrap();
    let key = rcgen::KeyPair::from_pem(&pem).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(place.ours.certificate(), key).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "ann");
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    Signed { certificate, key: key.serialize_pem() }
}

#[tokio::test]
async fn the_common_name_is_the_user() {
    let place = Place::new();
    place.server(&place.ours);
    let served = Served::new(&Store::in_memory(), quick(), Some(place.keeper(true))).await;
    let of = |name: &str| {
        let shown = place.ours.issue(&named(name), Usage::Client).unwrap();
        who(&served, &place.ours, Some(&shown))
    };
    let (root, ann, ghost) = (of("root"), of("ann"), of("ghost"));
    for (path, body) in [
        ("auth/user/add", json!({"name": "root", "options": {"no_password": true}})),
        ("auth/user/grant", json!({"user": "root", "role": "root"})),
        ("auth/user/add", json!({"name": "ann", "password": "a"})),
        ("auth/role/add", json!({"name": "some"})),
        ("auth/role/grant", json!({"name": "some", "perm": {"permType": 2, "key": "YQ=="}})),
        ("auth/user/grant", json!({"user": "ann", "role": "some"})),
        ("auth/enable", json!({})),
    ] {
        assert_eq!(ghost.ask(path, &body).await.0, 200, "{path}");
    }
    let put = async |client: &Client, key: &str| client.ask("kv/put", &json!({"key": key})).await.0;
    assert_eq!((put(&ann, "YQ==").await, put(&ann, "Yg==").await), (200, 403));
    assert_eq!((put(&root, "YQ==").await, put(&root, "Yg==").await), (200, 200));
    assert_eq!(put(&ghost, "YQ==").await, 403);
    // So it is by gRPC.
    let call = async |name: &str, key: &'static str| {
        let shown = place.ours.issue(&named(name), Usage::Client).unwrap();
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(place.ours.certificate()))
            .identity(tonic::transport::Identity::from_pem(&shown.certificate, &shown.key))
            .domain_name("localhost");
        let channel = Channel::from_shared(format!("https://{}", served.address)).unwrap();
        let channel = channel.tls_config(tls).unwrap().connect().await.unwrap();
        let put = pb::PutRequest { key: key.into(), ..Default::default() };
        KvClient::new(channel).put(put).await.map(drop).map_err(|status| status.code())
    };
    assert_eq!(call("ann", "a").await, Ok(()));
    assert_eq!(call("ann", "b").await, Err(Code::PermissionDenied));
    assert_eq!(call("root", "b").await, Ok(()));
    assert_eq!(call("ghost", "a").await, Err(Code::PermissionDenied));
    // A token says more than a certificate, and a wrong one is not made good by it.
    let body = json!({"name": "ann", "password": "a"});
    let (_, answer): (_, Value) = root.ask("auth/authenticate", &body).await;
    let token = Some(answer["token"].as_str().unwrap().to_owned());
    assert_eq!(put(&Client { token, ..root.clone() }, "Yg==").await, 403);
    let token = Some("0123".to_owned());
    assert_eq!(put(&Client { token, ..root.clone() }, "Yg==").await, 401);
}

#[tokio::test]
async fn who_connects_after_a_rotation_meets_the_new_files() {
    let place = Place::new();
    place.server(&place.ours);
    let served = Served::new(&Store::in_memory(), quick(), Some(place.keeper(true))).await;
    let ours = place.ours.issue(&named("ann"), Usage::Client).unwrap();
    let theirs = place.theirs.issue(&named("ann"), Usage::Client).unwrap();
    assert!(enters(&who(&served, &place.ours, Some(&ours))).await);
    place.server(&place.theirs);
    assert!(!enters(&who(&served, &place.ours, Some(&ours))).await);
    assert!(enters(&who(&served, &place.theirs, Some(&ours))).await);
    // The authority of clients too.
    replace(&place.path("client-ca.crt"), place.theirs.certificate());
    assert!(!enters(&who(&served, &place.theirs, Some(&ours))).await);
    assert!(enters(&who(&served, &place.theirs, Some(&theirs))).await);
    // What is half there, of no use, or gone, changes nothing, until it is whole.
    let whole = fs::read_to_string(place.path("server.crt")).unwrap();
    for broken in [&whole[..whole.len() / 2], "", "no certificate"] {
        replace(&place.path("server.crt"), broken);
        assert!(enters(&who(&served, &place.theirs, Some(&theirs))).await, "{broken}");
    }
    fs::remove_file(place.path("server.crt")).unwrap();
    assert!(enters(&who(&served, &place.theirs, Some(&theirs))).await);
    replace(&place.path("client-ca.crt"), "");
    assert!(!enters(&who(&served, &place.theirs, None)).await, "no authority is not everybody");
    replace(&place.path("client-ca.crt"), place.ours.certificate());
    place.server(&place.ours);
    assert!(enters(&who(&served, &place.ours, Some(&ours))).await);
}

#[test]
fn files_of_no_use_are_told_at_the_start() {
    let place = Place::new();
    let error = TlsKeeper::open(place.files(false)).unwrap_err();
    assert!(error.to_string().contains("server.crt"), "{error}");
    place.server(&place.ours);
    let other = place.theirs.issue(&named("etcd"), Usage::Server).unwrap();
    replace(&place.path("server.key"), &other.key);
    TlsKeeper::open(place.files(false)).unwrap_err();
}
