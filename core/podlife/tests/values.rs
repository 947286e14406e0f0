//! What a Pod's environment, volumes and CRI configurations are made of.
#![allow(clippy::unwrap_used)]

use knarr_oci::cri;
use knarr_podlife::config::{Given, Paths, cgroup, container, sandbox};
use knarr_podlife::env::{Itself, Sources, environment};
use knarr_podlife::volumes::{Content, Need, contents, fs_group, needs};
use knarr_typed::{Container, Pod};
use serde_json::{Value, json};

fn pod(spec: Value, quality: &str) -> Pod {
    let metadata = json!({"name": "p", "namespace": "d", "uid": "u",
        "labels": {"app": "a\"b", "tier": "x"}});
    let pod = json!({"metadata": metadata, "spec": spec, "status": {"qosClass": quality}});
    serde_json::from_value(pod).unwrap()
}

fn sources() -> Sources {
    let mut sources = Sources::default();
    let map = json!({"data": {"a": "1", "b": "two"}, "binaryData": {"bin": "AAE="}});
    sources.config_maps.insert("map".to_owned(), map);
    sources.secrets.insert("secret".to_owned(), json!({"data": {"k": "c2VzYW1l"}}));
    sources.tokens.insert((String::new(), 3600), "TOKEN".to_owned());
    sources
}

fn itself() -> Itself {
    Itself {
        addresses: vec!["10.0.0.1".to_owned(), "fd00::1".to_owned()],
        node_addresses: vec!["192.0.2.1".to_owned()],
        allocatable: (4000, 8 << 30),
        services: Default::default(),
    }
}

fn only(pod: &Pod) -> Container {
    pod.spec.clone().unwrap().containers.remove(0)
}

/// The environment as `NAME=VALUE` words, or why there is none.
fn env_of(container: Value) -> String {
    let mut container = container;
    container["name"] = json!("c");
    let pod = pod(json!({"nodeName": "n", "containers": [container]}), "BestEffort");
    match environment(&pod, &only(&pod), &sources(), &itself()) {
        Ok(envs) => envs.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" "),
        Err(why) => format!("error: {why}"),
    }
}

fn env_from(source: Value) -> String {
    env_of(json!({"env": [{"name": "E", "valueFrom": source}]}))
}

#[test]
fn whole_objects_come_with_their_prefix_and_before_the_others() {
    let from = json!({"envFrom": [{"prefix": "P_", "configMapRef": {"name": "map"}},
        {"secretRef": {"name": "secret"}},
        {"secretRef": {"name": "none", "optional": true}}],
        "env": [{"name": "E", "value": "$(P_a)-$(k)-$(later)-$$(k)"}, {"name": "later"}]});
    assert_eq!(env_of(from), "P_a=1 P_b=two k=sesame E=1-sesame-$(later)-$(k) later=");
    for (kind, error) in [
        ("configMapRef", "error: configmap \"none\" not found"),
        ("secretRef", "error: secret \"none\" not found"),
    ] {
        assert_eq!(env_of(json!({"envFrom": [{kind: {"name": "none"}}]})), error);
    }
}

#[test]
fn keys_are_looked_up_and_what_is_missing_is_named() {
    for (kind, name, key, optional, expected) in [
        ("configMapKeyRef", "map", "a", false, "E=1"),
        ("secretKeyRef", "secret", "k", false, "E=sesame"),
        ("configMapKeyRef", "map", "z", true, ""),
        ("secretKeyRef", "none", "z", true, ""),
        ("configMapKeyRef", "map", "z", false, "error: couldn't find key z in ConfigMap d/map"),
        ("secretKeyRef", "secret", "z", false, "error: couldn't find key z in Secret d/secret"),
        ("secretKeyRef", "none", "z", false, "error: secret \"none\" not found"),
    ] {
        let source = json!({kind: {"name": name, "key": key, "optional": optional}});
        assert_eq!(env_from(source), expected, "{kind} {name} {key}");
    }
}

#[test]
fn fields_of_the_pod_are_read() {
    for (path, expected) in [
        ("metadata.name", "E=p"),
        ("metadata.uid", "E=u"),
        ("metadata.labels['tier']", "E=x"),
        ("metadata.labels['none']", "E="),
        ("metadata.labels", "E=app=\"a\\\"b\"\ntier=\"x\""),
        ("spec.nodeName", "E=n"),
        ("status.podIP", "E=10.0.0.1"),
        ("status.podIPs", "E=10.0.0.1,fd00::1"),
        ("status.hostIP", "E=192.0.2.1"),
        ("status.phase", "error: unsupported fieldPath: status.phase"),
    ] {
        assert_eq!(env_from(json!({"fieldRef": {"fieldPath": path}})), expected, "{path}");
    }
}

#[test]
fn resources_are_read_in_units_of_the_divisor() {
    for (resource, divisor, expected) in [
        ("limits.cpu", "", "E=2"),
        ("limits.cpu", "1m", "E=1500"),
        ("requests.cpu", "1", "E=1"),
        ("limits.memory", "1Mi", "E=8192"),
        ("requests.memory", "", "E=100"),
        ("other.cpu", "", "error: unsupported container resource : other.cpu"),
    ] {
        let resources =
            json!({"limits": {"cpu": "1500m"}, "requests": {"cpu": "10m", "memory": "100"}});
        let mut reference = json!({"resource": resource});
        if !divisor.is_empty() {
            reference["divisor"] = json!(divisor);
        }
        let env = json!([{"name": "E", "valueFrom": {"resourceFieldRef": reference}}]);
        assert_eq!(env_of(json!({"env": env, "resources": resources})), expected, "{resource}");
    }
}

/// The files of the only volume as `PATH MODE CONTENT` lines, or what else it is.
fn volume(volume: Value) -> String {
    let mut volume = volume;
    volume["name"] = json!("v");
    let pod = pod(json!({"containers": [], "volumes": [volume]}), "BestEffort");
    match contents(&pod, &sources(), &itself()) {
        Ok(made) => match &made[0].1 {
            Content::Files(files, _) => {
                let line = |file: &knarr_podlife::volumes::File| {
                    let text = String::from_utf8_lossy(&file.bytes).into_owned();
                    format!("{} {:o} {text}", file.path, file.mode)
                };
                files.iter().map(line).collect::<Vec<_>>().join("\n")
            }
            other => format!("{other:?}"),
        },
        Err(why) => {
            why.strip_prefix("MountVolume.SetUp failed for volume \"v\" : ").unwrap().into()
        }
    }
}

const MAP_FILES: &str = "a 644 1\nb 644 two\nbin 644 \0\x01";

#[test]
fn volumes_hold_what_they_project() {
    let token = json!({"serviceAccountToken": {"path": "token"}});
    let map = json!({"configMap": {"name": "map", "items": [{"key": "a", "path": "d/a"}]}});
    let item = json!({"path": "labels", "mode": 0o600,
        "fieldRef": {"fieldPath": "metadata.labels['tier']"}});
    let downward = json!({"downwardAPI": {"items": [item]}});
    let projected = json!({"projected": {"defaultMode": 0o444, "sources": [token, map, downward]}});
    assert_eq!(volume(projected), "token 444 TOKEN\nd/a 444 1\nlabels 600 x");
    assert_eq!(volume(json!({"configMap": {"name": "map"}})), MAP_FILES);
    let secret = json!({"secretName": "secret", "items": [{"key": "k", "path": "x", "mode": 256}]});
    assert_eq!(volume(json!({"secret": secret})), "x 400 sesame");
    assert_eq!(volume(json!({"configMap": {"name": "none", "optional": true}})), "");
    let empty = json!({"emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}});
    assert_eq!(volume(empty), "Empty { memory: true, limit: 1048576 }");
    let host = json!({"hostPath": {"path": "/dev", "type": "Directory"}});
    assert_eq!(volume(host), "Host(\"/dev\", \"Directory\")");
}

#[test]
fn what_a_volume_lacks_is_named() {
    let item = |kind: &str, name: &str, of: &str| {
        volume(json!({kind: {name: of, "items": [{"key": "z", "path": "z"}]}}))
    };
    assert_eq!(item("configMap", "name", "map"), "configmap references non-existent config key: z");
    assert_eq!(item("secret", "secretName", "secret"), "references non-existent secret key: z");
    assert_eq!(item("configMap", "name", "none"), "configmap \"none\" not found");
    let token = json!({"serviceAccountToken": {"path": "token", "audience": "other"}});
    let token = volume(json!({"projected": {"sources": [token]}}));
    assert_eq!(token, "the service account token is not there yet");
}

#[test]
fn a_volume_in_memory_is_bounded_by_whatever_is_least() {
    let empty = |medium: &str, limit: Option<&str>, memory: Option<&str>| {
        let volume = json!({"name": "v", "emptyDir": {"medium": medium, "sizeLimit": limit}});
        let limits = memory.map(|memory| json!({"memory": memory}));
        let container = json!({"name": "c", "resources": {"limits": limits}});
        let spec = json!({"containers": [container.clone(), container], "volumes": [volume]});
        match contents(&pod(spec, "BestEffort"), &sources(), &itself()) {
            Ok(made) => format!("{:?}", made[0].1),
            Err(why) => why,
        }
    };
    let memory = |limit: i64| format!("Empty {{ memory: true, limit: {limit} }}");
    assert_eq!(empty("Memory", None, None), memory(8 << 30));
    assert_eq!(empty("Memory", None, Some("1Mi")), memory(2 << 20));
    assert_eq!(empty("Memory", Some("5Mi"), Some("1Mi")), memory(2 << 20));
    assert_eq!(empty("Memory", Some("1Mi"), Some("1Mi")), memory(1 << 20));
    assert_eq!(empty("", Some("1Mi"), None), "Empty { memory: false, limit: 1048576 }");
    let failed = "MountVolume.SetUp failed for volume \"v\" : ";
    let huge = empty("HugePages-2Mi", None, None);
    assert_eq!(huge, format!("{failed}storage medium \"HugePages-2Mi\" is not served yet"));
    let odd = empty("Odd", None, None);
    assert_eq!(odd, format!("{failed}unknown storage medium \"Odd\""));
}

#[test]
fn resources_are_projected_by_container() {
    let item = |name: &str, resource: &str, divisor: &str| {
        let field = json!({"containerName": name, "resource": resource, "divisor": divisor});
        let volume = json!({"name": "v",
            "downwardAPI": {"items": [{"path": "x", "resourceFieldRef": field}]}});
        let container =
            json!({"name": "c", "resources": {"limits": {"memory": "3Mi", "cpu": "1500m"}}});
        let spec = json!({"containers": [container], "volumes": [volume]});
        match contents(&pod(spec, "BestEffort"), &sources(), &itself())
            .map(|mut made| made.remove(0).1)
        {
            Ok(Content::Files(files, _)) => String::from_utf8(files[0].bytes.clone()).unwrap(),
            other => format!("{other:?}"),
        }
    };
    assert_eq!(item("c", "limits.memory", "1Mi"), "3");
    assert_eq!(item("c", "limits.memory", "0"), "3145728");
    assert_eq!(item("c", "limits.cpu", "1"), "2");
    assert_eq!(item("c", "limits.cpu", "1m"), "1500");
    assert!(item("none", "limits.cpu", "1").contains("container none not found"));
}

#[test]
fn a_token_is_its_users_alone_where_that_is_known() {
    let owned = |security: Value, own: [Value; 2]| {
        let volume = json!({"name": "v", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token"}}]}});
        let [first, second] = own.map(|own| json!({"name": "c", "securityContext": own}));
        let spec = json!({"securityContext": security, "volumes": [volume],
            "initContainers": [first], "containers": [second]});
        let pod = pod(spec, "BestEffort");
        match contents(&pod, &sources(), &itself()).unwrap().remove(0).1 {
            Content::Files(files, _) => (files[0].mode, files[0].owner, fs_group(&pod)),
            other => panic!("{other:?}"),
        }
    };
    let user = |user: i64| json!({"runAsUser": user});
    let none = || json!({});
    assert_eq!(owned(none(), [none(), none()]), (0o644, None, None));
    assert_eq!(owned(user(5), [none(), none()]), (0o600, Some(5), None));
    assert_eq!(owned(none(), [user(6), user(6)]), (0o600, Some(6), None));
    assert_eq!(owned(user(5), [user(5), user(6)]), (0o644, None, None));
    assert_eq!(owned(none(), [user(6), none()]), (0o644, None, None));
    assert_eq!(owned(json!({"fsGroup": 7}), [none(), none()]), (0o600, None, Some(7)));
}

#[test]
fn what_cannot_be_seen_is_not_taken_for_missing() {
    let mut unseen = Sources::default();
    let why = "failed to sync configmap cache: timed out waiting for the condition";
    unseen.unknown.insert(Need::ConfigMap("map".to_owned()), why.to_owned());
    let volume = json!({"name": "v", "configMap": {"name": "map", "optional": true}});
    let pod = pod(json!({"containers": [], "volumes": [volume]}), "BestEffort");
    let refused = contents(&pod, &unseen, &itself()).unwrap_err();
    assert_eq!(refused, format!("MountVolume.SetUp failed for volume \"v\" : {why}"));
}

#[test]
fn what_the_node_cannot_make_is_refused() {
    let refused = |source: Value| {
        let mut volume = source;
        volume["name"] = json!("data");
        let pod = pod(json!({"containers": [], "volumes": [volume]}), "BestEffort");
        contents(&pod, &sources(), &itself()).unwrap_err()
    };
    let claim = json!({"persistentVolumeClaim": {"claimName": "c"}});
    assert_eq!(
        refused(claim),
        "Unable to attach or mount volumes: unmounted volumes=[data], unattached volumes=[], \
         failed to process volumes=[data]: persistentVolumeClaim volumes are not served yet"
    );
    assert!(refused(json!({"image": {"reference": "x"}})).contains("image volumes are not"));
    let bundle = json!({"clusterTrustBundle": {"path": "x", "name": "x"}});
    let refused = refused(json!({"projected": {"sources": [bundle]}}));
    assert!(refused.ends_with("clusterTrustBundle projections are not served yet"), "{refused}");
}

#[test]
fn places_for_other_volumes_are_made_inside() {
    let volume = json!({"name": "v", "configMap": {"name": "map"}});
    let mounts = json!([{"name": "v", "mountPath": "/etc/app"},
        {"name": "w", "mountPath": "/etc/app/cache/deep"}, {"name": "w", "mountPath": "/etc/apple"},
        {"name": "v", "mountPath": "/part", "subPath": "s"},
        {"name": "w", "mountPath": "/part/x"}]);
    let spec = json!({"containers": [{"name": "c", "volumeMounts": mounts}], "volumes": [volume]});
    let made = contents(&pod(spec, "BestEffort"), &sources(), &itself()).unwrap();
    let Content::Files(_, places) = &made[0].1 else { panic!("{made:?}") };
    assert_eq!(places, &["cache/deep", "s/x"]);
}

#[test]
fn no_path_leaves_its_volume() {
    for path in ["../a", "a/../../b", "/etc/passwd", "..data", "a//b", ".", ""] {
        let items = json!([{"key": "a", "path": path}]);
        let refused = volume(json!({"configMap": {"name": "map", "items": items}}));
        assert_eq!(refused, format!("the path {path:?} leaves the volume"));
    }
}

#[test]
fn everything_referred_to_is_needed() {
    let spec = json!({
        "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "s1"}}]}],
        "containers": [{"name": "c", "env": [
            {"name": "E", "valueFrom": {"configMapKeyRef": {"name": "m1", "key": "k"}}}]}],
        "volumes": [{"name": "v", "secret": {"secretName": "s2"}},
            {"name": "w", "projected": {"sources": [{"configMap": {"name": "m2"}},
               {"serviceAccountToken": {"path":"t", "audience": "x", "expirationSeconds": 600}}]}}]
    });
    let needs: Vec<Need> = needs(&pod(spec, "BestEffort")).into_iter().collect();
    let map = |name: &str| Need::ConfigMap(name.to_owned());
    let secret = |name: &str| Need::Secret(name.to_owned());
    let token = Need::Token("x".to_owned(), 600);
    assert_eq!(needs, [map("m1"), map("m2"), secret("s1"), secret("s2"), token]);
}

fn paths() -> Paths {
    let [pod, logs, cgroup] = ["/pods/u", "/logs/d_p_u", "/knarr"].map(str::to_owned);
    Paths { pod, logs, cgroup }
}

/// The configuration of the only container, and of its sandbox.
fn configured(spec: Value, quality: &str) -> (cri::ContainerConfig, cri::PodSandboxConfig) {
    let pod = pod(spec, quality);
    let envs = vec![("A".to_owned(), "x".to_owned())];
    let volumes = [("v".to_owned(), "/pods/u/v".to_owned())].into();
    let given = Given { envs, volumes, node_memory: 1 << 30, ..Given::default() };
    let made = container(&pod, &only(&pod), 3, &given).unwrap();
    (made, sandbox(&pod, &paths(), 2))
}

#[test]
fn quality_of_service_sets_control_group_and_resources() {
    let asks = json!({"limits": {"cpu": "250m", "memory": "256Mi"}, "requests": {"cpu": "100m",
        "memory": "256Mi"}});
    for (quality, group, score) in [
        ("Guaranteed", "/knarr/podu", -997),
        ("Burstable", "/knarr/burstable/podu", 750),
        ("BestEffort", "/knarr/besteffort/podu", 1000),
    ] {
        let spec = json!({"containers": [{"name": "c", "resources": asks}]});
        assert_eq!(cgroup(&pod(spec.clone(), quality), &paths()), group);
        let (made, around) = configured(spec, quality);
        let resources = made.linux.resources;
        assert_eq!(around.linux.cgroup_parent, group);
        assert_eq!(resources.oom_score_adj, score, "{quality}");
        assert_eq!((resources.cpu_shares, resources.cpu_quota), (102, 25_000));
        assert_eq!((resources.cpu_period, resources.memory_limit_in_bytes), (100_000, 256 << 20));
    }
}

#[test]
fn few_resources_have_their_floors() {
    let resources = |asks: Value| {
        let spec = json!({"containers": [{"name": "c", "resources": asks}]});
        let made = configured(spec, "Burstable").0.linux.resources;
        (made.cpu_shares, made.cpu_quota, made.cpu_period, made.oom_score_adj)
    };
    assert_eq!(resources(json!({})), (2, 0, 0, 999));
    assert_eq!(resources(json!({"limits": {"cpu": "0"}})), (2, 0, 0, 999));
    assert_eq!(resources(json!({"limits": {"cpu": "1m"}})), (2, 1000, 100_000, 999));
    assert_eq!(resources(json!({"limits": {"cpu": "2"}})), (2048, 200_000, 100_000, 999));
    assert_eq!(resources(json!({"requests": {"memory": "1Gi"}})), (2, 0, 0, 3));
}

#[test]
fn a_container_is_asked_for_as_written() {
    let mount = json!({"name": "v", "mountPath": "/data", "readOnly": true,
        "mountPropagation": "HostToContainer"});
    let spec = json!({"containers": [{"name": "c", "image": "x", "workingDir": "/w",
        "command": ["$(A)", "$(B)"], "args": ["$$(A)"], "volumeMounts": [mount]}]});
    let made = configured(spec, "BestEffort").0;
    assert_eq!((made.metadata.attempt, made.log_path.as_str()), (3, "c/3.log"));
    assert_eq!((made.command.join(" "), made.args.join(" ")), ("x $(B)".into(), "$(A)".into()));
    let mount = &made.mounts[0];
    assert_eq!((mount.container_path.as_str(), mount.host_path.as_str()), ("/data", "/pods/u/v"));
    assert!(mount.readonly);
    assert_eq!(mount.propagation, cri::MountPropagation::HostToContainer);
}

#[test]
fn a_mount_stays_in_its_volume() {
    for (mount, error) in [
        (json!({"name": "none"}), "cannot find volume \"none\" to mount into container \"c\""),
        (
            json!({"name": "v", "subPath": "../x"}),
            "unable to provision SubPath `../x`: must not contain '..'",
        ),
        (json!({"name": "v", "subPath": "/x"}), "error SubPath `/x` must not be an absolute path"),
    ] {
        let mut mount = mount;
        mount["mountPath"] = json!("/data");
        let spec = json!({"containers": [{"name": "c", "volumeMounts": [mount]}]});
        let pod = pod(spec, "BestEffort");
        let volumes = [("v".to_owned(), "/v".to_owned())].into();
        let given = Given { volumes, ..Given::default() };
        assert_eq!(container(&pod, &only(&pod), 0, &given).unwrap_err(), error);
    }
}

/// The only mount of a container, or why there is none.
fn mounted(volume: Value, mount: Value) -> Result<cri::Mount, String> {
    let (mut volume, mut mount) = (volume, mount);
    (volume["name"], mount["name"], mount["mountPath"]) = (json!("v"), json!("v"), json!("/data"));
    let spec = json!({"containers": [{"name": "c", "volumeMounts": [mount]}], "volumes": [volume]});
    let pod = pod(spec, "BestEffort");
    let envs = [("A", "x"), ("EMPTY", "")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    let volumes = [("v".to_owned(), "/v".to_owned())].into();
    let given = Given { volumes, envs: envs.to_vec(), ..Given::default() };
    container(&pod, &only(&pod), 0, &given).map(|mut made| made.mounts.remove(0))
}

#[test]
fn parts_of_volumes_are_named_by_the_environment() {
    let part = |mount: Value| mounted(json!({"emptyDir": {}}), mount).map(|mount| mount.sub_path);
    assert_eq!(part(json!({"subPath": "a/b"})), Ok("a/b".into()));
    assert_eq!(part(json!({"subPath": "$(A)"})), Ok("$(A)".into()));
    assert_eq!(part(json!({"subPathExpr": "a/$(A)"})), Ok("a/x".into()));
    let missing = part(json!({"subPathExpr": "$(Z)/$(EMPTY)/$(A)"}));
    assert_eq!(missing, Err("missing value for EMPTY, Z".into()));
    assert_eq!(
        part(json!({"subPathExpr": "/$(A)"})),
        Err("error SubPath `/x` must not be an absolute path".into())
    );
}

#[test]
fn volumes_of_files_are_for_reading() {
    for (volume, expected) in [
        (json!({"emptyDir": {}}), false),
        (json!({"hostPath": {"path": "/x"}}), false),
        (json!({"configMap": {"name": "m"}}), true),
        (json!({"secret": {"secretName": "m"}}), true),
        (json!({"projected": {"sources": []}}), true),
        (json!({"downwardAPI": {"items": []}}), true),
    ] {
        assert_eq!(mounted(volume.clone(), json!({})).unwrap().readonly, expected, "{volume}");
    }
}

#[test]
fn mounts_below_are_read_only_too_if_that_can_be() {
    let recursive = |mount: Value| {
        mounted(json!({"emptyDir": {}}), mount).map(|mount| mount.recursive_read_only)
    };
    let ask = |mode: &str| json!({"recursiveReadOnly": mode, "readOnly": true});
    assert_eq!(recursive(ask("Disabled")), Ok(false));
    assert_eq!(recursive(ask("Enabled")), Ok(true));
    assert_eq!(recursive(ask("IfPossible")), Ok(true));
    let failed = "failed to resolve recursive read-only mode: ";
    assert_eq!(
        recursive(ask("Odd")),
        Err(format!("{failed}unknown recursive read-only mode \"Odd\""))
    );
    let mut both = ask("Enabled");
    both["mountPropagation"] = json!("Bidirectional");
    let refused = recursive(both).unwrap_err();
    assert!(refused.ends_with("not compatible with propagation \"Bidirectional\""), "{refused}");
    let refused = recursive(json!({"recursiveReadOnly": "Enabled"})).unwrap_err();
    assert!(refused.ends_with("but it is not read-only"), "{refused}");
}

#[test]
fn the_containers_security_wins_over_the_pods() {
    let spec = json!({
        "securityContext": {"runAsUser": 1, "runAsGroup": 2, "fsGroup": 4,
            "supplementalGroups": [3], "seccompProfile": {"type": "Unconfined"}},
        "shareProcessNamespace": true,
        "containers": [{"name": "c", "securityContext": {"runAsUser": 10,
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}}}]});
    let (made, around) = configured(spec, "BestEffort");
    let made = made.linux.security_context;
    assert_eq!((made.run_as_user, made.run_as_group), (Some(10), Some(2)));
    assert_eq!(made.supplemental_groups, [3, 4]);
    assert!(made.no_new_privs && made.readonly_rootfs && !made.privileged);
    assert_eq!(made.capabilities.add_capabilities, ["NET_ADMIN"]);
    assert_eq!(made.capabilities.drop_capabilities, ["ALL"]);
    assert_eq!(made.seccomp, cri::SecurityProfile::Unconfined);
    assert!(!made.masked_paths.is_empty() && !made.readonly_paths.is_empty());
    assert_eq!(made.namespace_options.pid, cri::NamespaceMode::Pod);
    assert!(!around.linux.security_context.privileged);
    assert_eq!((around.hostname.as_str(), around.metadata.attempt), ("p", 2));
}

#[test]
fn a_privileged_container_sees_the_node() {
    let spec = json!({"hostNetwork": true, "hostPID": true,
        "initContainers": [{"name": "i", "securityContext": {"privileged": true}}],
        "containers": [{"name": "c", "securityContext": {"privileged": true}}]});
    let (made, around) = configured(spec.clone(), "BestEffort");
    let made = made.linux.security_context;
    assert!(made.privileged && made.masked_paths.is_empty() && made.readonly_paths.is_empty());
    assert_eq!(made.seccomp, cri::SecurityProfile::Unconfined);
    assert_eq!(made.namespace_options.network, cri::NamespaceMode::Node);
    assert_eq!(made.namespace_options.pid, cri::NamespaceMode::Node);
    assert_eq!(around.hostname, "", "the node keeps its name");
    let mut spec = spec;
    spec["containers"][0]["securityContext"] = json!({});
    let (made, around) = configured(spec, "BestEffort");
    assert!(!made.linux.security_context.privileged);
    assert!(around.linux.security_context.privileged, "an init container counts, too");
}

#[test]
fn what_must_not_be_root_is_not() {
    let spec = |non_root: bool, user: Option<i64>| {
        let mut context = json!({"runAsNonRoot": non_root});
        if let Some(user) = user {
            context["runAsUser"] = user.into();
        }
        pod(
            json!({"securityContext": context, "containers": [{"name": "c", "image": "i"}]}),
            "BestEffort",
        )
    };
    let refused = |pod: &Pod, uid: Option<i64>, name: &str| {
        let given = Given { image_user: (uid, name.into()), ..Given::default() };
        container(pod, &only(pod), 0, &given).is_err()
    };
    assert!(!refused(&spec(false, None), Some(0), ""));
    assert!(refused(&spec(true, None), Some(0), ""));
    assert!(refused(&spec(true, None), None, ""), "an image without a user runs as root");
    assert!(refused(&spec(true, None), None, "nginx"), "a name proves nothing");
    assert!(!refused(&spec(true, None), Some(7), ""));
    assert!(!refused(&spec(true, Some(7)), Some(0), ""));
    assert!(refused(&spec(true, Some(0)), Some(7), ""));
}

#[test]
fn probes_and_hooks_are_resolved() {
    use knarr_podlife::checks::{Check, Hook, HttpGet, Scheme, hook};
    use knarr_podlife::probes::{ProbeKind, check};
    let of = |container: Value| {
        let mut container = container;
        container["name"] = json!("c");
        container["ports"] = json!([{"name": "web", "containerPort": 8080}]);
        container["env"] = json!([{"name": "A", "value": "b"}]);
        pod(json!({"containers": [container]}), "BestEffort")
    };
    let addresses = ["10.0.0.1".to_owned()];
    let probe = |probe: Value| {
        check(&of(json!({"livenessProbe": probe})), "c", ProbeKind::Liveness, &addresses)
    };
    let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        probe(json!({"exec": {"command": ["x", "$(A)$(B)"]}, "timeoutSeconds": 7})),
        Ok((Check::Exec(words(&["x", "b$(B)"])), 7))
    );
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let get = HttpGet {
        scheme: Scheme::Http,
        host: "10.0.0.1".to_owned(),
        port: 8080,
        path: "/".to_owned(),
        headers: vec![header("User-Agent", "kube-probe/1.36"), header("Accept", "*/*")],
    };
    assert_eq!(probe(json!({"httpGet": {"port": "web"}})), Ok((Check::Http(get.clone()), 1)));
    let none = json!([{"name": "accept", "value": ""}, {"name": "User-Agent", "value": "u"}]);
    let own = json!({"port": 1, "host": "h", "scheme": "HTTPS", "path": "/p", "httpHeaders": none});
    let scheme = Scheme::Https;
    let (host, path) = ("h".to_owned(), "/p".to_owned());
    let headers = vec![header("User-Agent", "u")];
    let wanted = HttpGet { scheme, host, port: 1, path, headers };
    assert_eq!(probe(json!({"httpGet": own})), Ok((Check::Http(wanted), 1)));
    let tcp = Check::Tcp { host: "10.0.0.1".to_owned(), port: 9 };
    assert_eq!(probe(json!({"tcpSocket": {"port": 9}})), Ok((tcp, 1)));
    let (host, service) = ("10.0.0.1".to_owned(), "s".to_owned());
    let grpc = Check::Grpc { host, port: 9, service };
    assert_eq!(probe(json!({"grpc": {"port": 9, "service": "s"}})), Ok((grpc, 1)));
    let missing = probe(json!({"tcpSocket": {"port": "none"}})).unwrap_err();
    assert_eq!(missing, "couldn't find port: \"none\"");
    let hooked = of(json!({"lifecycle": {"postStart": {"sleep": {"seconds": 3}},
        "preStop": {"httpGet": {"port": "web"}}}}));
    let start = hook(&hooked, "c", Hook::PostStart, &addresses);
    assert_eq!(start, Some(Ok(Check::Sleep(3))));
    let headers = vec![header("User-Agent", "kube-lifecycle/1.36"), header("Accept", "*/*")];
    let stop = hook(&hooked, "c", Hook::PreStop, &addresses);
    assert_eq!(stop, Some(Ok(Check::Http(HttpGet { headers, ..get }))));
    assert_eq!(hook(&of(json!({})), "c", Hook::PreStop, &addresses), None);
}

#[test]
fn variables_of_services_come_behind_the_containers_own() {
    let mut itself = itself();
    itself.services = [("S", "1"), ("T", "2")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let container = json!({"name": "c", "args": ["$(S)$(T)"], "env": [
        {"name": "U", "value": "$(S)$(T)"}, {"name": "T", "value": "own"},
        {"name": "V", "value": "$(T)"}]});
    let pod = pod(json!({"containers": [container]}), "BestEffort");
    let envs = environment(&pod, &only(&pod), &sources(), &itself).unwrap();
    let envs: Vec<String> = envs.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(envs.join(" "), "S=1 U=12 T=own V=own");
}
