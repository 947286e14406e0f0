//! The Pods of the check and what runs in them: shell, with busybox's `httpd`, `ip` and `nc`.

use serde_json::{Value, json};

/// Ports of the two containers of a server.
pub(super) const WEB: u16 = 8080;
pub(super) const PEER: u16 = 8081;
/// Port of the servers on nodes themselves, where few others are.
pub(super) const HOST: u16 = 48080;

/// Where a client lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Pod,
    Node,
}

/// Somebody to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// What the answer is noted under.
    pub(super) key: String,
    /// Its address or name.
    pub(super) host: String,
    pub(super) port: u16,
    /// Which page of it.
    pub(super) page: &'static str,
    /// A name of the cluster, which nodes do not know.
    pub(super) by_name: bool,
}

/// `ask HOST PORT PAGE` prints the page, or nothing.
const ASK: &str = r#"ask() { printf 'GET /cgi-bin/%s HTTP/1.0\r\n\r\n' $3 | nc -w 3 $1 $2 | \
  tr -d '\r' | sed '1,/^$/d'; }"#;

/// Pages: `who` asks, which addresses are one's `own`, what the other container says (`local`).
fn httpd(port: u16, other: u16) -> String {
    format!(
        r#"mkdir -p /tmp/{port}/cgi-bin && cd /tmp/{port}/cgi-bin
page() {{ (echo '#!/bin/sh'; echo 'echo "Content-Type: text/plain"; echo'; cat) >$1; chmod +x $1; }}
page who <<'END'
echo "$REMOTE_ADDR"
END
page own <<'END'
ip -o addr | while read -r n dev family address rest; do echo "$address"; done
END
page local <<'END'
{ASK}
ask 127.0.0.1 {other} who
END
exec httpd -f -p {port} -h /tmp/{port}"#
    )
}

/// Asks everybody at once; who does not answer is asked again, as rules follow the API in a moment.
fn asking(targets: &[&Target]) -> String {
    let mut script = format!(
        r#"ip -o addr | while read -r n dev family address rest; do echo "own $address"; done
{ASK}
get() {{
  for i in 1 2 3 4 5 6; do
    answer=$(ask "$2" "$3" "$4" 2>/dev/null)
    if [ -n "$answer" ]; then echo "got $1 "$answer; return; fi
    sleep 1
  done
  echo "failed $1"
}}
"#
    );
    for Target { key, host, port, page, .. } in targets {
        script += &format!("get {key} {host} {port} {page} &\n");
    }
    script + "wait\n"
}

fn container(name: &str, image: &str, script: &str, port: Option<u16>) -> Value {
    let mut container = json!({"name": name, "image": image, "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script]});
    if let Some(port) = port {
        container["ports"] = json!([{"containerPort": port}]);
    }
    container
}

fn pod(name: String, labels: Value, node: &str, containers: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": containers,
            "automountServiceAccountToken": false, "enableServiceLinks": false,
            "tolerations": [{"operator": "Exists"}]}})
}

/// A Pod with two containers that serve.
pub(super) fn server(number: usize, node: &str, image: &str) -> Value {
    let containers = json!([
        container("web", image, &httpd(WEB, PEER), Some(WEB)),
        container("peer", image, &httpd(PEER, WEB), Some(PEER))
    ]);
    pod(format!("server-{number}"), json!({"app": "web"}), node, containers)
}

/// A Pod in its node's own network that serves.
pub(super) fn host_server(number: usize, node: &str, image: &str) -> Value {
    let containers = json!([container("web", image, &httpd(HOST, HOST), Some(HOST))]);
    let mut pod = pod(format!("host-{number}"), json!({}), node, containers);
    pod["spec"]["hostNetwork"] = true.into();
    pod
}

/// The Service of all servers.
pub(super) fn service() -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "NodePort", "ipFamilyPolicy": "PreferDualStack",
            "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "targetPort": WEB}]}})
}

/// A Pod that asks and ends.
pub(super) fn client(
    number: usize,
    (node, image): (&str, &str),
    place: Place,
    targets: &[Target],
) -> Value {
    let targets: Vec<&Target> =
        targets.iter().filter(|target| place == Place::Pod || !target.by_name).collect();
    let containers = json!([container("ask", image, &asking(&targets), None)]);
    let (name, host) = match place {
        Place::Pod => (format!("client-{number}"), false),
        Place::Node => (format!("hostclient-{number}"), true),
    };
    let mut pod = pod(name, json!({}), node, containers);
    pod["spec"]["restartPolicy"] = "Never".into();
    pod["spec"]["hostNetwork"] = host.into();
    pod
}
