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
    let users = machine.path("users");
    fs::write(&users, USERS).unwrap();
    let auth = match readers {
        Readers::All => String::new(),
        Readers::User => format!("auth: {{htpasswd: {{realm: r, path: {}}}}}\n", users.display()),
    };
    let config = machine.path(&format!("registry-{port}.yml"));
    let folder = machine.path(&format!("registry-{port}"));
    let text = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
         http: {{addr: '127.0.0.1:{port}'}}\n{auth}",
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
