//! Who may do what: RBAC is on, for people and for our own parts alike.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::fs;

use knarr_e2e::{Machine, Outcome, alone};

mod manifests;
use manifests::nginx;

/// A kubeconfig with nothing in it but the server and a token.
fn kubeconfig_of(machine: &Machine, token: &str) -> String {
    let of = |field: &str| {
        machine.kubectl(&format!("config view --raw -o jsonpath={{.clusters[0].cluster.{field}}}"))
    };
    let (server, ca) = (of("server"), of("certificate-authority-data"));
    let text = format!(
        "apiVersion: v1
kind: Config
current-context: it
clusters: [{{name: it, cluster: {{server: \"{server}\", certificate-authority-data: {ca}}}}}]
users: [{{name: it, user: {{token: \"{token}\"}}}}]
contexts: [{{name: it, context: {{cluster: it, user: it}}}}]
"
    );
    let path = machine.path("other.kubeconfig");
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn as_other(machine: &Machine, kubeconfig: &str, args: &str) -> Outcome {
    Outcome::of(machine.kubectl_command(args).env("KUBECONFIG", kubeconfig))
}

#[test]
fn a_service_account_reads_no_secrets_until_it_may() {
    alone(|machine| {
        let _up = machine.up();
        machine.wait("serviceaccount/default", "create");
        let token = machine.kubectl("create token default");
        let config = kubeconfig_of(machine, token.trim());
        let who = as_other(machine, &config, "auth whoami").success();
        assert!(who.contains("system:serviceaccount:default:default"), "{who}");
        let refused = as_other(machine, &config, "get secrets").failure();
        assert!(
            refused.contains("Error from server (Forbidden)")
                && refused.contains("User \"system:serviceaccount:default:default\" cannot list"),
            "{refused}"
        );
        machine.kubectl("create role reader --verb=list --resource=secrets");
        machine.kubectl("create rolebinding reader --role=reader --serviceaccount=default:default");
        as_other(machine, &config, "get secrets").success();
        as_other(machine, &config, "get secrets -n kube-system").failure();
    });
}

#[test]
fn a_wrong_token_is_nobody() {
    alone(|machine| {
        let _up = machine.up();
        let config = kubeconfig_of(machine, "made-up");
        let refused = as_other(machine, &config, "get pods").failure();
        assert!(refused.contains("You must be logged in to the server"), "{refused}");
    });
}

/// Without its bootstrap binding a component is refused; with it again, all goes on.
fn without_binding(machine: &Machine, binding: &str, user: &str, never: &str, after: &str) {
    let up = machine.up();
    machine.import("nginx");
    let object = format!("clusterrolebinding/{binding}");
    let mut kept = machine.json(&format!("get {object}"));
    kept["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    machine.kubectl(&format!("delete {object}"));
    machine.apply(&nginx(1));
    up.line("that it was refused", |line| line.contains("forbidden") && line.contains(user));
    assert_eq!(machine.kubectl(&format!("get {never} -o name")), "");
    machine.kubectl_with("create -f -", &kept.to_string());
    machine.wait("deployment/web", after);
}

#[test]
fn without_its_binding_the_deployment_controller_is_refused() {
    alone(|machine| {
        let user = "system:serviceaccount:kube-system:deployment-controller";
        let binding = "system:controller:deployment-controller";
        without_binding(machine, binding, user, "replicasets", "condition=Available");
    });
}

#[test]
fn without_its_binding_the_replica_set_controller_is_refused() {
    alone(|machine| {
        let user = "system:serviceaccount:kube-system:replicaset-controller";
        let binding = "system:controller:replicaset-controller";
        without_binding(machine, binding, user, "pods", "condition=Available");
    });
}

#[test]
fn without_its_binding_the_scheduler_is_refused() {
    alone(|machine| {
        let never = "pods --field-selector=spec.nodeName!=";
        let (binding, user) = ("system:kube-scheduler", "system:kube-scheduler");
        without_binding(machine, binding, user, never, "condition=Available");
    });
}

#[test]
fn a_node_may_not_touch_what_is_not_its_own() {
    alone(|machine| {
        let _up = machine.up();
        let config = machine.path("root/var/lib/knarr/node/kubeconfig").display().to_string();
        let who = as_other(machine, &config, "auth whoami").success();
        assert!(who.contains("system:node:node-1"), "{who}");
        as_other(machine, &config, "get node node-1").success();
        let refused = as_other(machine, &config, "delete namespace default").failure();
        assert!(refused.contains("Forbidden"), "{refused}");
        let refused = as_other(machine, &config, "get secrets -A").failure();
        assert!(refused.contains("Forbidden"), "{refused}");
    });
}
