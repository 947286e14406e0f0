//! Images from registries: Debian's docker-registry on the loopback, filled by skopeo.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::fs;
use std::process::Command;

use knarr_e2e::{Machine, Outcome, Running, alone};

/// bcrypt of `secret`.
const USERS: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// Who may read a registry.
enum Readers {
    All,
    User,
}

/// Starts a registry on a port of the loopback.
fn registry(machine: &Machine, port: u16, readers: Readers) -> Running {
    serve(machine, &format!("127.0.0.1:{port}"), readers, "")
}

/// Starts a registry; `tls` goes into the settings of its listener.
fn serve(machine: &Machine, address: &str, readers: Readers, tls: &str) -> Running {
    let users = machine.path("users");
    fs::write(&users, USERS).unwrap();
    let auth = match readers {
        Readers::All => String::new(),
        Readers::User => format!("auth: {{htpasswd: {{realm: r, path: {}}}}}\n", users.display()),
    };
    let config = machine.path(&format!("registry-{address}.yml"));
    let folder = machine.path(&format!("registry-{address}"));
    let text = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: '{}'}}}}\n\
         http: {{addr: '{address}'{tls}}}\n{auth}",
        folder.display()
    );
    fs::write(&config, text).unwrap();
    let running = Running::start(
        "docker-registry",
        Command::new("docker-registry").arg("serve").arg(&config),
    );
    running.line("listening", |line| line.contains("listening on"));
    running
}

/// Puts an image of the tests into a registry.
fn push(machine: &Machine, word: &str, to: &str) {
    let mut skopeo = Command::new("skopeo");
    skopeo.args([
        "--insecure-policy",
        "copy",
        "--dest-tls-verify=false",
        "--dest-creds=user:secret",
    ]);
    skopeo.arg(format!("oci-archive:{}", machine.archive(word).display()));
    Outcome::of(skopeo.arg(format!("docker://{to}"))).success();
}

/// A Deployment `web` of one image.
fn web(image: &str, more: &str) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  selector: {{matchLabels: {{app: web}}}}
  strategy: {{type: Recreate}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      {more}
      containers:
      - name: main
        image: {image}
        command: [sh, -c, 'trap exit TERM; sleep 1000 & wait']
"
    )
}

/// Follows the events of a Pod until each text was told.
#[track_caller]
fn assert_told(machine: &Machine, pod: &str, mut texts: Vec<&str>) {
    let events = machine.follow(&format!("events --for pod/{pod} --watch"));
    while !texts.is_empty() {
        let line = events.line(&texts.join(" or "), |line| texts.iter().any(|t| line.contains(t)));
        texts.retain(|text| !line.contains(text));
    }
}

fn pod(machine: &Machine) -> String {
    machine.wait("pod -l app=web", "create");
    machine.value("pods -l app=web", ".items[0].metadata.name")
}

#[test]
fn a_deployment_s_image_comes_from_a_registry_by_tag_and_digest() {
    alone(|machine| {
        let _registry = registry(machine, 5000, Readers::All);
        let image = "localhost:5000/team/busybox:1";
        push(machine, "busybox", image);
        let _up = machine.up();
        machine.apply(&web(image, ""));
        machine.wait("deployment/web", "condition=Available");
        let pod = pod(machine);
        let pulling = format!("Pulling image \"{image}\"");
        let pulled = format!("Successfully pulled image \"{image}\" in ");
        assert_told(machine, &pod, vec![&pulling, &pulled]);
        let id = machine.value(&format!("pod/{pod}"), ".status.containerStatuses[0].imageID");
        assert!(id.starts_with("localhost:5000/team/busybox@sha256:"), "{id}");
        machine.apply(&web(&id, ""));
        machine.kubectl("rollout status deployment/web --timeout=60s");
        let listed = machine.knarr("images ls @root").success();
        assert!(listed.contains(image) && listed.contains(&id), "{listed}");
    });
}

#[test]
fn a_private_image_needs_a_pull_secret() {
    alone(|machine| {
        let _registry = registry(machine, 5000, Readers::User);
        let image = "127.0.0.1:5000/private/busybox:1";
        push(machine, "busybox", image);
        let _up = machine.up();
        machine.apply(&web(image, ""));
        let first = pod(machine);
        let waiting = "jsonpath={.status.containerStatuses[0].state.waiting.reason}";
        machine.wait(&format!("pod/{first}"), &format!("{waiting}=ImagePullBackOff"));
        let message = ".status.containerStatuses[0].state.waiting.message";
        let message = machine.value(&format!("pod/{first}"), message);
        assert!(message.contains("pull access denied"), "{message}");
        machine.kubectl(
            "create secret docker-registry pull --docker-server=127.0.0.1:5000 \
             --docker-username=user --docker-password=secret",
        );
        machine.apply(&web(image, "imagePullSecrets: [{name: pull}]"));
        machine.wait("deployment/web", "condition=Available");
        // The image is here now, and still not for a Pod without the secret.
        let thief = web(image, "").replace("web", "thief");
        machine.apply(&thief);
        machine.wait("pod -l app=thief", "create");
        let thief = machine.value("pods -l app=thief", ".items[0].metadata.name");
        machine.wait(&format!("pod/{thief}"), &format!("{waiting}=ErrImagePull"));
        machine.kubectl("delete deployment thief --cascade=foreground --timeout=60s");
        // A service account's secrets are its Pods'.
        machine.kubectl("delete deployment web --cascade=foreground --timeout=60s");
        let patch = "{\"imagePullSecrets\":[{\"name\":\"pull\"}]}";
        machine.kubectl(&format!("patch serviceaccount default -p {patch}"));
        machine.knarr(&format!("images rm {image} @root")).success();
        machine.apply(&web(image, ""));
        machine.wait("deployment/web", "condition=Available");
    });
}

#[test]
fn a_wrong_tag_is_told_as_upstream_does_and_another_image_is_tried_at_once() {
    alone(|machine| {
        let _registry = registry(machine, 5000, Readers::All);
        push(machine, "busybox", "localhost:5000/busybox:1");
        let _up = machine.up();
        let wrong = "localhost:5000/busybox:2";
        machine.apply(&web(wrong, ""));
        let first = pod(machine);
        let status = format!("pod/{first}");
        let waiting = "jsonpath={.status.containerStatuses[0].state.waiting.reason}";
        machine.wait(&status, &format!("{waiting}=ErrImagePull"));
        machine.wait(&status, &format!("{waiting}=ImagePullBackOff"));
        let message = ".status.containerStatuses[0].state.waiting.message";
        let message = machine.value(&status, message);
        let why = format!(
            "failed to pull and unpack image \"{wrong}\": failed to resolve reference \
             \"{wrong}\": {wrong}: not found"
        );
        assert_eq!(message, format!("Back-off pulling image \"{wrong}\": ErrImagePull: {why}"));
        let failed = format!("Failed to pull image \"{wrong}\": {why}");
        let back_off = format!("Back-off pulling image \"{wrong}\"");
        let texts = vec![
            failed.as_str(),
            back_off.as_str(),
            "Error: ErrImagePull",
            "Error: ImagePullBackOff",
        ];
        assert_told(machine, &first, texts);
        // The Pod itself is changed, not replaced.
        machine.kubectl(&format!("set image {status} main=localhost:5000/busybox:1"));
        machine.wait(&status, "condition=Ready");
    });
}

/// An authority of the test's own, and what it signed for the machine's address.
fn certificates(machine: &Machine) -> String {
    let path = |name: &str| machine.path(name).display().to_string();
    let script = format!(
        "cd {} && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
           -subj /CN=test-ca -keyout ca.key -out ca.crt && \
         openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=registry \
           -keyout tls.key -out tls.csr && \
         printf 'subjectAltName=IP:198.51.100.10' >san && \
         openssl x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -days 2 -extfile san -out tls.crt",
        path("")
    );
    Outcome::of(Command::new("sh").args(["-c", &script])).success();
    format!(", tls: {{certificate: {}, key: {}}}", path("tls.crt"), path("tls.key"))
}

#[test]
fn the_command_line_pulls_over_tls_with_a_password_and_writes_what_skopeo_reads() {
    alone(|machine| {
        let tls = certificates(machine);
        let _registry = serve(machine, "198.51.100.10:5443", Readers::User, &tls);
        let image = "198.51.100.10:5443/private/busybox:1";
        push(machine, "busybox", image);
        let pull = |creds: &str| machine.knarr(&format!("images pull {image} @root {creds}"));
        let error = pull("--creds user:secret").failure();
        assert!(error.contains("certificate"), "an unknown authority is trusted: {error}");
        let folder = machine.path("root/etc/knarr/certs.d/198.51.100.10:5443");
        fs::create_dir_all(&folder).unwrap();
        let ca = machine.path("ca.crt");
        let hosts = format!("server = \"https://198.51.100.10:5443\"\nca = \"{}\"\n", ca.display());
        fs::write(folder.join("hosts.toml"), hosts).unwrap();
        for creds in ["", "--creds user:wrong"] {
            let error = pull(creds).failure();
            assert!(error.contains("pull access denied"), "{error}");
        }
        let told = pull("--creds user:secret");
        assert!(told.err.contains("done, "), "no line for a layer that came: {told}");
        let digest = told.success();
        assert!(digest.starts_with("198.51.100.10:5443/private/busybox@sha256:"), "{digest}");
        let again = pull("--creds user:secret");
        assert!(!again.err.contains("done, "), "it came twice: {again}");
        machine.knarr(&format!("images export {image} @out.tar @root")).success();
        let mut skopeo = Command::new("skopeo");
        let archive = machine.path("out.tar");
        skopeo.args(["inspect", &format!("oci-archive:{}", archive.display())]);
        let inspected = Outcome::of(&mut skopeo).success();
        assert!(inspected.contains("\"Architecture\""), "{inspected}");
        let pruned = machine.knarr("images prune @root").success();
        assert!(pruned.contains("1 images removed"), "{pruned}");
        machine.knarr(&format!("images import {} @root", archive.display())).success();
        assert!(machine.knarr("images ls @root").success().contains(image));
        let error = machine.knarr("images export absent @absent.tar @root").failure();
        assert!(error.contains("there is no image absent"), "{error}");
    });
}

#[test]
fn a_full_disk_loses_the_images_that_nobody_uses() {
    alone(|machine| {
        for word in ["busybox", "nginx"] {
            machine.import(word);
        }
        // With thresholds of nothing every disk is full.
        let full = "--image-gc-high-threshold 0 --image-gc-low-threshold 0 \
                    --minimum-image-ttl-seconds 0";
        let up = machine.start(&format!("{} {full}", knarr_e2e::UP));
        up.line("Ready", |line| line.starts_with("Ready"));
        let events = machine.follow("events --watch");
        events.line("FreeDiskSpaceFailed", |line| line.contains("FreeDiskSpaceFailed"));
        let listed = machine.knarr("images ls @root").success();
        assert_eq!(listed.lines().count(), 1, "{listed}");
    });
}

#[test]
fn a_node_reports_its_images() {
    alone(|machine| {
        let _registry = registry(machine, 5000, Readers::All);
        let image = "localhost:5000/busybox:1";
        push(machine, "busybox", image);
        let _up = machine.up();
        machine.apply(&web(image, ""));
        machine.wait("deployment/web", "condition=Available");
        machine.wait("node/node-1", "jsonpath={.status.images[0].sizeBytes}");
        let names = machine.values("node/node-1", ".status.images[0].names[*]");
        assert_eq!((names.len(), names[1].as_str()), (2, image));
    });
}
