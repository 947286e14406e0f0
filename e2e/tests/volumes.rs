//! Volumes: what containers find in them, and what becomes of it while they run.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::fs;

use knarr_e2e::{Machine, alone};

/// A Pod `p` with one container of busybox; `volumes` and `mounts` as JSON lists' insides.
fn pod(script: &str, volumes: &str, mounts: &str, more: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: p
  labels: {{app: first}}
spec:
  terminationGracePeriodSeconds: 1
  {more}
  volumes: [{volumes}]
  containers:
  - name: main
    image: busybox:1
    imagePullPolicy: Never
    resources: {{limits: {{memory: 64Mi}}}}
    volumeMounts: [{mounts}]
    command: [sh, -c, {script:?}]
"
    )
}

/// Says what a line of shell prints, whenever that is another text than before.
fn told(line: &str) -> String {
    format!(
        "while true; do now=$({line} 2>&1); [ \"$now\" = \"$last\" ] || echo \"$now\"; \
         last=$now; usleep 100000; done"
    )
}

const SLEEP: &str = "exec sleep 1000";

fn run(machine: &Machine, manifest: &str) {
    machine.apply(manifest);
    machine.wait("pod/p", "condition=Ready");
}

fn inside(machine: &Machine, line: &str) -> String {
    machine.kubectl(&format!("exec p -- {line}")).trim_end().to_owned()
}

/// Deletes the Pod; nothing of it is mounted or lies about.
fn gone(machine: &Machine) {
    machine.kubectl("delete pod p --timeout=60s");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let left: Vec<_> = table.lines().filter(|line| line.contains("/kubelet/pods/")).collect();
    assert!(left.is_empty(), "still mounted: {left:#?}");
    let pods = fs::read_dir(machine.path("root/var/lib/kubelet/pods")).unwrap().count();
    assert_eq!(pods, 0, "folders of Pods are left");
}

#[test]
fn a_running_container_sees_what_a_config_map_says_now() {
    alone(|machine| {
        let _up = machine.up();
        machine.import("busybox");
        machine.kubectl("create configmap map --from-literal=key=one --from-literal=old=x");
        machine.kubectl("create secret generic secret --from-literal=key=hidden");
        let script = told(
            "echo $(for file in /map/key /part /both/* /secret/key; do cat $file; echo; done; \
             ls /map)",
        );
        let volumes = "{name: map, configMap: {name: map}}, \
            {name: secret, secret: {secretName: secret, defaultMode: 0400}}, \
            {name: both, projected: {sources: [{configMap: {name: map, \
            items: [{key: key, path: a}]}}, {secret: {name: none, optional: true}}]}}";
        let mounts = "{name: map, mountPath: /map}, {name: both, mountPath: /both}, \
            {name: map, mountPath: /part, subPath: key}, {name: secret, mountPath: /secret}";
        run(machine, &pod(&script, volumes, mounts, ""));
        let log = machine.follow("logs -f p");
        log.line("the first version", |line| line == "one one one hidden key old");
        let patch = "patch configmap map --type=json -p \
            [{\"op\":\"replace\",\"path\":\"/data/key\",\"value\":\"two\"},\
            {\"op\":\"remove\",\"path\":\"/data/old\"}]";
        machine.kubectl(patch);
        log.line("the second version", |line| line == "two one two hidden key");
        machine.kubectl("patch secret secret -p {\"stringData\":{\"key\":\"other\"}}");
        log.line("the other secret", |line| line == "two one two other key");
        machine.kubectl("create secret generic none --from-literal=b=new");
        log.line("an optional one that came", |line| line == "two one two new other key");
        machine.kubectl("delete secret none");
        log.line("an optional one that went", |line| line == "two one two other key");
        let written = machine.try_kubectl("exec p -- touch /map/new").failure();
        assert!(written.contains("Read-only file system"), "{written}");
        assert_eq!(inside(machine, "stat -L -c %a /map/key /secret/key"), "644\n400");
        gone(machine);
    });
}

#[test]
fn what_is_missing_is_waited_for() {
    alone(|machine| {
        let _up = machine.up();
        machine.import("busybox");
        let volumes = "{name: map, configMap: {name: late}}";
        machine.apply(&pod(SLEEP, volumes, "{name: map, mountPath: /map}", ""));
        let events = machine.follow("events --for pod/p --watch");
        let missing = "MountVolume.SetUp failed for volume \"map\" : configmap \"late\" not found";
        events.line("FailedMount", |line| line.contains(missing));
        machine.kubectl("create configmap late --from-literal=key=here");
        machine.wait("pod/p", "condition=Ready");
        assert_eq!(inside(machine, "cat /map/key"), "here");
        gone(machine);
    });
}

#[test]
fn a_pod_reads_of_itself_and_sees_its_labels_change() {
    alone(|machine| {
        let _up = machine.up();
        machine.import("busybox");
        let volumes = "{name: self, downwardAPI: {items: [\
            {path: labels, fieldRef: {fieldPath: metadata.labels}}, \
            {path: deep/name, fieldRef: {fieldPath: metadata.name}}, \
            {path: memory, mode: 0440, resourceFieldRef: {containerName: main, \
            resource: limits.memory, divisor: 1Mi}}]}}";
        let script = told("echo $(cat /self/labels /self/deep/name /self/memory)");
        run(machine, &pod(&script, volumes, "{name: self, mountPath: /self}", ""));
        let log = machine.follow("logs -f p");
        log.line("its first labels", |line| line == "app=\"first\"p64");
        machine.kubectl("label pod p app=second --overwrite");
        log.line("its second labels", |line| line == "app=\"second\"p64");
        assert_eq!(inside(machine, "stat -L -c %a /self/memory"), "440");
        gone(machine);
    });
}

#[test]
fn a_token_is_good_and_only_its_pods() {
    alone(|machine| {
        let _up = machine.up();
        machine.import("busybox");
        let volumes = "{name: own, projected: {sources: [{serviceAccountToken: \
            {path: token, audience: vault, expirationSeconds: 600}}]}}";
        let user = "securityContext: {runAsUser: 1000, fsGroup: 2000}";
        run(machine, &pod(SLEEP, volumes, "{name: own, mountPath: /own}", user));
        let folder = "/var/run/secrets/kubernetes.io/serviceaccount";
        let review = |token: &str, audience: &str| {
            let review = format!(
                "{{\"apiVersion\": \"authentication.k8s.io/v1\", \"kind\": \"TokenReview\", \
                 \"spec\": {{\"token\": {token:?}, \"audiences\": [{audience}]}}}}"
            );
            let answer = machine.kubectl_with("create --validate=false -o json -f -", &review);
            let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
            answer["status"]["user"]["username"].as_str().unwrap_or_default().to_owned()
        };
        let (token, own) =
            (inside(machine, &format!("cat {folder}/token")), inside(machine, "cat /own/token"));
        let account = "system:serviceaccount:default:default";
        assert_eq!(
            (review(&token, ""), review(&own, "\"vault\"")),
            (account.into(), account.into())
        );
        assert_eq!(review(&own, ""), "", "a token for others is none for the API server");
        let shown = inside(machine, &format!("stat -L -c %a:%u:%g {folder}/token /own/token"));
        assert_eq!(shown, "640:1000:2000\n640:1000:2000");
        assert_eq!(inside(machine, &format!("cat {folder}/namespace")), "default");
        gone(machine);
    });
}

#[test]
fn containers_share_a_folder_that_has_a_bound_in_memory() {
    alone(|machine| {
        let _up = machine.up();
        machine.import("busybox");
        let volumes = "{name: disk, emptyDir: {}}, \
            {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}";
        let mounts = "{name: disk, mountPath: /disk}, {name: memory, mountPath: /memory}, \
            {name: disk, mountPath: /memory/inner}";
        let second = format!(
            "{}  - name: other
    image: busybox:1
    imagePullPolicy: Never
    volumeMounts: [{{name: disk, mountPath: /shared}}]
    command: [sh, -c, {:?}]
",
            pod(
                "echo mine > /disk/file; exec sleep 1000",
                volumes,
                mounts,
                "securityContext: {fsGroup: 3000}"
            ),
            told("cat /shared/file")
        );
        run(machine, &second);
        let log = machine.follow("logs -f p -c other");
        log.line("the other's file", |line| line == "mine");
        let fits = "exec p -c main -- dd if=/dev/zero of=/memory/file bs=1k count=";
        machine.kubectl(&format!("{fits}900"));
        let full = machine.try_kubectl(&format!("{fits}2000")).failure();
        assert!(full.contains("No space left on device"), "{full}");
        let shown = inside(machine, "stat -c %a:%g /disk /memory /disk/file");
        assert_eq!(shown, "2777:3000\n2777:3000\n644:3000");
        assert_eq!(inside(machine, "cat /memory/inner/file"), "mine");
        gone(machine);
    });
}

#[test]
fn a_path_of_the_node_is_checked() {
    alone(|machine| {
        let _up = machine.up();
        machine.import("busybox");
        let place = machine.path("host");
        fs::create_dir(&place).unwrap();
        fs::write(place.join("file"), "of the node").unwrap();
        let place = place.display();
        let volume = |path: &str, kind: &str| {
            format!("{{name: host, hostPath: {{path: {place}/{path}, type: {kind}}}}}")
        };
        let mount = "{name: host, mountPath: /host, readOnly: true}";
        for (path, kind, wrong) in [
            ("file", "Directory", "a directory"),
            ("", "File", "a file"),
            ("file", "Socket", "a socket file"),
            ("file", "CharDevice", "a character device"),
            ("file", "BlockDevice", "a block device"),
        ] {
            machine.apply(&pod(SLEEP, &volume(path, kind), mount, ""));
            let text = format!("hostPath type check failed: {place}/{path} is not {wrong}");
            let text = text.replace("/ is", " is");
            let events = machine.follow("events --for pod/p --watch");
            events.line(&text, |line| line.replace("/ is", " is").contains(&text));
            gone(machine);
        }
        run(machine, &pod(SLEEP, &volume("new/deep", "DirectoryOrCreate"), mount, ""));
        let written = machine.try_kubectl("exec p -- touch /host/x").failure();
        assert!(written.contains("Read-only file system"), "{written}");
        gone(machine);
        assert!(machine.path("host/new/deep").is_dir(), "what is the node's stays");
        run(machine, &pod(SLEEP, &volume("file", "FileOrCreate"), mount, ""));
        assert_eq!(inside(machine, "cat /host"), "of the node");
        gone(machine);
        assert!(machine.path("host/file").is_file());
    });
}

#[test]
fn a_part_of_a_volume_is_made_and_never_leads_out_of_it() {
    alone(|machine| {
        let _up = machine.up();
        machine.import("busybox");
        let volumes = "{name: v, emptyDir: {}}";
        let mounts = "{name: v, mountPath: /all}, {name: v, mountPath: /part, subPath: a/b}, \
            {name: v, mountPath: /named, subPathExpr: logs/$(NAME)}";
        let script = "echo x > /part/file; echo y > /named/file; cat /all/a/b/file \
            /all/logs/box/file; usleep 300000; rm -r /all/a; ln -s / /all/a; exit 1";
        let manifest = pod(script, volumes, mounts, "")
            .replace("    command:", "    env: [{name: NAME, value: box}]\n    command:");
        machine.apply(&manifest);
        let status = ".status.containerStatuses[0]";
        let reason = format!("jsonpath={{{status}.state.waiting.reason}}");
        machine.wait("pod/p", &format!("{reason}=CreateContainerConfigError"));
        let message = machine.value("pod/p", &format!("{status}.state.waiting.message"));
        // `/b` may or may not exist on the node: that is not told.
        assert_eq!(
            message,
            "failed to prepare subPath for volumeMount \"v\" of container \"main\""
        );
        assert_eq!(machine.kubectl("logs p"), "x\ny\n");
        assert!(!std::path::Path::new("/b").exists());
        gone(machine);
    });
}
