//! Pulls from registries that break off, lie, ask for proofs and send elsewhere.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use knarr_images::{Error, PullOptions, Puller, RegistryError, Stage, Store};
use knarr_oci::credentials::Credentials;

mod support;
use support::{Fake, Image, Reply, architecture, digest};

struct World {
    dir: tempfile::TempDir,
    store: Arc<Store>,
    puller: Puller,
}

fn world() -> Option<World> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: needs root");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let (store, puller) = open(&dir);
    Some(World { dir, store, puller })
}

fn open(dir: &tempfile::TempDir) -> (Arc<Store>, Puller) {
    let store = Arc::new(Store::open(dir.path().join("store")).unwrap());
    let puller = Puller::open(store.clone(), Some(dir.path().join("certs.d"))).unwrap();
    (store, puller)
}

impl World {
    fn partial(&self, digest: &str) -> PathBuf {
        self.dir.path().join("store/partial").join(digest.trim_start_matches("sha256:"))
    }

    async fn refused(&self, name: &str) -> RegistryError {
        match self.puller.pull(name, &PullOptions::default()).await {
            Err(Error::Pull { why, .. }) => why,
            other => panic!("{name}: {other:?}"),
        }
    }
}

fn as_user() -> PullOptions {
    PullOptions { credentials: Credentials::parse("user:secret"), ..PullOptions::default() }
}

fn big() -> Image {
    let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    Image::new(&[("big", &bytes)])
}

#[tokio::test]
async fn an_image_comes_by_tag_and_is_not_fetched_again() {
    let Some(world) = world() else { return };
    let image = Image::new(&[("one", b"1"), ("two", b"2")]);
    let wanted = digest(&image.manifest);
    let fake = Fake::serve(move |request| image.reply(request));
    let pulled = world.puller.pull(&fake.name("a/b:1"), &PullOptions::default()).await.unwrap();
    assert_eq!(pulled.repo_tags, [fake.name("a/b:1")]);
    assert_eq!(pulled.repo_digests, [fake.name(&format!("a/b@{wanted}"))]);
    let lower = world.store.unpacked(&pulled.id).unwrap().rootfs.lower;
    assert_eq!(fs::read_to_string(PathBuf::from(&lower[0]).join("two")).unwrap(), "2");
    let fetched = fake.asked("blobs").len();
    assert_eq!(fetched, 3);
    let again = world.puller.pull(&fake.name("a/b:2"), &PullOptions::default()).await.unwrap();
    assert_eq!(again.repo_tags, [fake.name("a/b:1"), fake.name("a/b:2")]);
    let by_digest = fake.name(&format!("a/b@{wanted}"));
    let again = world.puller.pull(&by_digest, &PullOptions::default()).await.unwrap();
    assert_eq!(again.id, pulled.id);
    assert_eq!(fake.asked("blobs").len(), fetched, "nothing is fetched twice");
    assert!(fs::read_dir(world.dir.path().join("store/partial")).unwrap().next().is_none());
    for name in ["a/b:1", "a/b:2"] {
        world.store.remove(&fake.name(name), &Default::default()).unwrap();
    }
    assert!(world.store.list().unwrap().is_empty(), "a digest alone keeps nothing");
}

#[tokio::test]
async fn a_broken_connection_is_taken_up_where_it_broke() {
    let Some(world) = world() else { return };
    let image = big();
    let layer = image.layers[0].clone();
    let size = image.parts[&layer].len();
    let part = layer.clone();
    let fake = Fake::serve(move |request| {
        let reply = image.reply(request);
        if request.path.contains(&part) && request.header("range").is_empty() {
            return reply.cut(300_000);
        }
        reply
    });
    world.puller.pull(&fake.name("a:1"), &PullOptions::default()).await.unwrap();
    let asked = fake.asked(&layer);
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[1].0.header("range"), "bytes=300000-");
    assert_eq!(asked.iter().map(|(_, bytes)| bytes).sum::<usize>(), size, "no byte came twice");
}

#[tokio::test]
async fn a_document_that_breaks_off_comes_anew() {
    let Some(world) = world() else { return };
    let image = Image::new(&[("one", b"1")]);
    let count = AtomicUsize::new(0);
    let fake = Fake::serve(move |request| {
        let reply = image.reply(request);
        let first = request.method == "GET" && count.fetch_add(1, Ordering::SeqCst) == 0;
        if first { reply.cut(10) } else { reply }
    });
    world.puller.pull(&fake.name("a:1"), &PullOptions::default()).await.unwrap();
    assert_eq!(fake.asked("manifests").len(), 3, "HEAD, half of it, all of it");
}

#[tokio::test]
async fn what_came_survives_a_restart() {
    let Some(world) = world() else { return };
    let image = big();
    let layer = image.layers[0].clone();
    let (part, count) = (layer.clone(), AtomicUsize::new(0));
    let fake = Fake::serve(move |request| {
        let reply = image.reply(request);
        match request.path.contains(&part).then(|| count.fetch_add(1, Ordering::SeqCst)) {
            Some(0) => reply.cut(300_000),
            Some(1) => Reply::of(404),
            _ => reply,
        }
    });
    let why = world.refused(&fake.name("a:1")).await;
    assert!(matches!(why, RegistryError::NotFound(_)), "{why:?}");
    assert_eq!(fs::metadata(world.partial(&layer)).unwrap().len(), 300_000);
    let World { dir, store, puller } = world;
    drop((store, puller));
    let (_, puller) = open(&dir);
    puller.pull(&fake.name("a:1"), &PullOptions::default()).await.unwrap();
    assert_eq!(fake.asked(&layer)[2].0.header("range"), "bytes=300000-");
}

#[tokio::test]
async fn a_server_that_knows_no_ranges_begins_anew() {
    let Some(world) = world() else { return };
    let image = big();
    let layer = image.layers[0].clone();
    let (part, count) = (layer.clone(), AtomicUsize::new(0));
    let fake = Fake::serve(move |request| {
        let mut whole = request.clone();
        whole.headers.remove("range");
        let reply = image.reply(&whole);
        match request.path.contains(&part) && count.fetch_add(1, Ordering::SeqCst) == 0 {
            true => reply.cut(300_000),
            false => reply,
        }
    });
    world.puller.pull(&fake.name("a:1"), &PullOptions::default()).await.unwrap();
    assert_eq!(fake.asked(&layer).len(), 2);
}

#[tokio::test]
async fn a_token_is_fetched_once_with_the_credentials() {
    let Some(world) = world() else { return };
    let image = Image::new(&[("one", b"1")]);
    let fake = Fake::serve(move |request| {
        let host = request.header("host");
        if request.path.starts_with("/token") {
            return match request.header("authorization") {
                "Basic dXNlcjpzZWNyZXQ=" => Reply::ok(r#"{"token": "t0ken"}"#),
                _ => Reply::of(401),
            };
        }
        match request.header("authorization") {
            "Bearer t0ken" => image.reply(request),
            _ => {
                let realm = format!(r#"Bearer realm="http://{host}/token""#);
                let rest = r#"service="the registry",scope="repository:a:pull""#;
                Reply::of(401).with("WWW-Authenticate", format!("{realm},{rest}"))
            }
        }
    });
    let why = world.refused(&fake.name("a:1")).await;
    assert!(matches!(why, RegistryError::Denied(_)), "{why:?}");
    world.puller.pull(&fake.name("a:1"), &as_user()).await.unwrap();
    let tokens = fake.asked("/token");
    assert_eq!(tokens.len(), 2, "one without and one with credentials");
    assert_eq!(tokens[1].0.path, "/token?service=the%20registry&scope=repository:a:pull");
}

#[tokio::test]
async fn too_many_requests_are_repeated_when_the_registry_says() {
    let Some(world) = world() else { return };
    let image = Image::new(&[("one", b"1")]);
    let count = AtomicUsize::new(0);
    let fake = Fake::serve(move |request| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::of(429).with("Retry-After", "1"),
        1 => Reply::of(503),
        _ => image.reply(request),
    });
    let began = Instant::now();
    world.puller.pull(&fake.name("a:1"), &PullOptions::default()).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_registry_that_stays_broken_is_given_up() {
    let Some(world) = world() else { return };
    let fake = Fake::serve(|_| Reply::of(500).with("Retry-After", "0"));
    let why = world.refused(&fake.name("a:1")).await;
    assert!(matches!(why, RegistryError::Status(500, _)), "{why:?}");
    assert_eq!(fake.asked("").len(), 5);
}

#[tokio::test]
async fn other_contents_than_named_are_refused_and_not_kept() {
    let Some(world) = world() else { return };
    for what in ["blobs/sha256:layer", "config", "manifest", "longer"] {
        let mut image = Image::new(&[("one", b"1")]);
        let layer = image.layers[0].clone();
        let manifest = digest(&image.manifest);
        let lied: Vec<String> = match what {
            "manifest" => vec![manifest],
            "config" => {
                image.parts.keys().filter(|d| **d != layer && **d != manifest).cloned().collect()
            }
            _ => vec![layer.clone()],
        };
        for name in &lied {
            let part = image.parts.get_mut(name).unwrap();
            match what {
                "longer" => part.push(b' '),
                _ => part[0] ^= 1,
            }
        }
        let fake = Fake::serve(move |request| {
            image.reply(request).with("docker-content-digest", digest(&image.manifest))
        });
        let why = world.refused(&fake.name("a:1")).await;
        let RegistryError::Broken(text) = &why else { panic!("{what}: {why:?}") };
        assert!(text.contains("other contents"), "{what}: {text}");
        assert!(!world.partial(&layer).exists(), "{what}: what is wrong is kept");
        assert!(world.store.list().unwrap().is_empty());
    }
}

#[tokio::test]
async fn limits_hold_before_anything_big_is_fetched() {
    let Some(world) = world() else { return };
    let fake = Fake::serve(|_| Reply::ok(vec![b' '; (4 << 20) + 1]));
    let why = world.refused(&fake.name("a:1")).await.to_string();
    assert!(why.contains("is longer than 4194304 bytes"), "{why}");
    let many: Vec<(&str, &[u8])> = vec![("x", b"1"); 128];
    let image = Image::new(&many);
    let fake = Fake::serve(move |request| image.reply(request));
    let why = world.refused(&fake.name("a:1")).await.to_string();
    assert!(why.contains("128 layers"), "{why}");
    assert!(fake.asked("blobs").is_empty());
}

#[tokio::test]
async fn a_redirect_to_another_host_takes_no_credentials_along() {
    let Some(world) = world() else { return };
    let image = Image::new(&[("one", b"1")]);
    let blobs = image.clone();
    let elsewhere = Fake::serve(move |request| blobs.reply(request));
    let address = elsewhere.address;
    let fake = Fake::serve(move |request| {
        if request.header("authorization") != "Basic dXNlcjpzZWNyZXQ=" {
            return Reply::of(401).with("WWW-Authenticate", "Basic realm=\"r\"");
        }
        match request.path.contains("/blobs/") {
            true => Reply::of(307).with("Location", format!("http://{address}{}", request.path)),
            false => image.reply(request),
        }
    });
    world.puller.pull(&fake.name("a:1"), &as_user()).await.unwrap();
    let seen = elsewhere.asked("");
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|(request, _)| request.header("authorization").is_empty()));
}

#[tokio::test]
async fn an_index_leads_to_this_machine_s_image() {
    let Some(world) = world() else { return };
    let (own, other) = (Image::new(&[("own", b"1")]), Image::new(&[("other", b"2")]));
    let row = |image: &Image, architecture: &str| {
        serde_json::json!({"mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest(&image.manifest), "size": image.manifest.len(),
            "platform": {"os": "linux", "architecture": architecture}})
    };
    let index = |rows: Vec<serde_json::Value>| {
        serde_json::json!({"schemaVersion": 2, "manifests": rows,
            "mediaType": "application/vnd.oci.image.index.v1+json"})
        .to_string()
        .into_bytes()
    };
    let good = index(vec![row(&other, "s390x"), row(&own, architecture())]);
    let none = index(vec![row(&other, "s390x")]);
    let mut image = own.clone();
    image.parts.extend(other.parts);
    image.parts.extend([(digest(&good), good.clone()), (digest(&none), none.clone())]);
    image.manifest = good.clone();
    let fake = Fake::serve(move |request| image.reply(request));
    let pulled = world.puller.pull(&fake.name("a:1"), &PullOptions::default()).await.unwrap();
    assert_eq!(pulled.repo_digests, [fake.name(&format!("a@{}", digest(&good)))]);
    let top = &world.store.unpacked(&pulled.id).unwrap().rootfs.lower[0];
    assert!(PathBuf::from(top).join("own").exists());
    let why = world.refused(&fake.name(&format!("a@{}", digest(&none)))).await.to_string();
    assert!(why.contains("no image for linux/"), "{why}");
}

#[tokio::test]
async fn docker_s_first_schema_is_refused_by_name() {
    let Some(world) = world() else { return };
    let manifest = br#"{"schemaVersion": 1}"#.to_vec();
    let parts = [(digest(&manifest), manifest.clone())].into();
    let image = Image { manifest, parts, ..Image::default() };
    let fake = Fake::serve(move |request| image.reply(request));
    let why = world.refused(&fake.name("a:1")).await.to_string();
    assert!(why.contains("manifest schema 1"), "{why}");
}

#[tokio::test]
async fn a_layer_that_two_pulls_want_comes_once() {
    let Some(world) = world() else { return };
    let bytes = vec![7; 1_000_000];
    let one = Image::new(&[("shared", &bytes), ("one", b"1")]);
    let two = Image::new(&[("shared", &bytes), ("two", b"2")]);
    let layer = one.layers[0].clone();
    let fake = Fake::serve(move |request| match request.path.starts_with("/v2/one/") {
        true => one.reply(request),
        false => two.reply(request),
    });
    let (first, second) = (fake.name("one"), fake.name("two"));
    let options = PullOptions::default();
    let (one, two) =
        tokio::join!(world.puller.pull(&first, &options), world.puller.pull(&second, &options));
    assert_ne!(one.unwrap().id, two.unwrap().id);
    assert_eq!(fake.asked(&layer).len(), 1);
}

#[tokio::test]
async fn a_pull_that_is_dropped_stops_and_the_next_one_goes_on() {
    let Some(world) = world() else { return };
    let image = big();
    let layer = image.layers[0].clone();
    let part = layer.clone();
    let (send, received) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(received);
    let fake = Fake::serve(move |request| {
        if request.path.contains(&part) && request.header("range").is_empty() {
            // Silent until the pull is over.
            let _ = gate.lock().unwrap().recv();
        }
        image.reply(request)
    });
    let (told, mut telling) = tokio::sync::mpsc::unbounded_channel();
    let watcher = Arc::new(move |news: knarr_images::Progress<'_>| {
        told.send(news.stage).unwrap();
    });
    let options = PullOptions { watcher: Some(watcher), ..PullOptions::default() };
    let name = fake.name("a:1");
    tokio::select! {
        _ = world.puller.pull(&name, &options) => panic!("it cannot end"),
        stage = telling.recv() => assert_eq!(stage, Some(Stage::Waiting)),
    }
    drop(send);
    world.puller.pull(&name, &PullOptions::default()).await.unwrap();
    assert!(world.store.status(&name).unwrap().is_some());
}

#[tokio::test]
async fn what_failed_pulls_left_goes_after_a_day() {
    let Some(world) = world() else { return };
    let image = Image::new(&[("good", b"1"), ("bad", b"2")]);
    let (good, bad) = (image.layers[0].clone(), image.layers[1].clone());
    let (done, unpacked) = std::sync::mpsc::channel();
    let gate = std::sync::Mutex::new(unpacked);
    let part = bad.clone();
    let fake = Fake::serve(move |request| {
        if request.path.contains(&part) {
            // The good one is unpacked first.
            let _ = gate.lock().unwrap().recv();
            return Reply::of(404);
        }
        image.reply(request)
    });
    let watcher = Arc::new(move |news: knarr_images::Progress<'_>| {
        if news.stage == Stage::Done {
            done.send(()).unwrap();
        }
    });
    let options = PullOptions { watcher: Some(watcher), ..PullOptions::default() };
    world.puller.pull(&fake.name("a:1"), &options).await.unwrap_err();
    let layer = world.dir.path().join("store/pulls/0").join(good.trim_start_matches("sha256:"));
    world.puller.forget_left().unwrap();
    assert!(layer.exists() && world.partial(&good).exists(), "the next pull takes them up");
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(25 * 3600);
    for path in [&layer, &world.partial(&good)] {
        fs::File::open(path).unwrap().set_modified(long_ago).unwrap();
    }
    world.puller.forget_left().unwrap();
    assert!(!layer.exists() && !world.partial(&good).exists());
}

#[tokio::test]
async fn a_mirror_comes_first_and_never_sees_credentials() {
    let Some(world) = world() else { return };
    let image = Image::new(&[("one", b"1")]);
    let (own, tag) = (image.clone(), digest(&image.manifest));
    let mirror = Fake::serve(move |request| match request.path.contains("/blobs/") {
        true => Reply::of(404),
        false if request.path.contains("/private/") => {
            Reply::of(401).with("WWW-Authenticate", "Basic")
        }
        false => image.reply(request),
    });
    let fake = Fake::serve(move |request| match request.header("authorization") {
        "" => Reply::of(401).with("WWW-Authenticate", "Basic"),
        _ => own.reply(request),
    });
    let folder = world.dir.path().join("certs.d/registry.example");
    fs::create_dir_all(&folder).unwrap();
    let text =
        format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", fake.address, mirror.address);
    fs::write(folder.join("hosts.toml"), text).unwrap();
    let pulled = world.puller.pull("registry.example/a:1", &as_user()).await.unwrap();
    assert_eq!(pulled.repo_digests, [format!("registry.example/a@{tag}")]);
    assert_eq!(mirror.asked("manifests").len(), 2);
    assert!(fake.asked("manifests").is_empty(), "what the mirror has comes from there");
    // What the mirror asks a proof for comes from the registry.
    world.puller.pull("registry.example/private/a:1", &as_user()).await.unwrap();
    let asked = mirror.asked("");
    assert!(asked.iter().all(|(request, _)| request.header("authorization").is_empty()));
    assert!(asked.iter().all(|(request, _)| request.path.ends_with("?ns=registry.example")));
}

#[tokio::test]
async fn an_exported_image_is_imported_as_it_was() {
    let Some(world) = world() else { return };
    let image = Image::new(&[("one", b"1"), ("two", b"2")]);
    let fake = Fake::serve(move |request| image.reply(request));
    let name = fake.name("a:1");
    world.puller.pull(&name, &PullOptions::default()).await.unwrap();
    let mut archive = Vec::new();
    world.store.export(&name, &mut archive).unwrap();
    let other = Store::open(world.dir.path().join("other")).unwrap();
    let imported = other.import(archive.as_slice(), None).unwrap();
    assert_eq!(imported[0].repo_tags, [name]);
    let lower = other.unpacked(&imported[0].id).unwrap().rootfs.lower;
    assert_eq!(fs::read_to_string(PathBuf::from(&lower[1]).join("one")).unwrap(), "1");
}
