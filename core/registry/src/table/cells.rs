//! Cells that are more than a field.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use jiff::Timestamp;
use serde_json::Value;

use super::{field, human, joined, list, names, number, pairs, since};
use crate::object::{strings, text};

/// What a column shows whose function does not exist; a test looks for it.
pub(super) const UNKNOWN_FUNCTION: &str = "<no such function>";

/// The cell that `function` makes of an object.
pub(super) fn cell(function: &str, object: &Value, now: Timestamp) -> Value {
    let made: String = match function {
        "age" => since(text(object, "/metadata/creationTimestamp"), now),
        "none" => "<none>".to_owned(),
        "pod_ready" => pod(object, now).ready,
        "pod_status" => pod(object, now).status,
        "pod_restarts" => pod(object, now).restarts,
        "pod_gates" => pod_gates(object),
        "containers" => names(object, "/spec/template/spec/containers", "/name"),
        "images" => names(object, "/spec/template/spec/containers", "/image"),
        "job_containers" => {
            names(object, "/spec/jobTemplate/spec/template/spec/containers", "/name")
        }
        "job_images" => names(object, "/spec/jobTemplate/spec/template/spec/containers", "/image"),
        "template_labels" => pairs(&field(object, ".template.metadata.labels")),
        "selector" => selector(&object["spec"]["selector"]),
        "service_selector" => pairs(&object["spec"]["selector"]),
        "pod_selector" => selector(&object["spec"]["podSelector"]),
        "node_selector" => pairs(&field(object, ".spec.template.spec.nodeSelector")),
        "ready_of_spec" => {
            format!(
                "{}/{}",
                number(object, "/status/readyReplicas"),
                number(object, "/spec/replicas")
            )
        }
        "data" => return data(object).into(),
        "active" => return list(object, "/status/active").count().into(),
        "last_schedule" => match text(object, "/status/lastScheduleTime") {
            "" => "<none>".to_owned(),
            at => since(at, now),
        },
        "endpoints" => endpoints(object),
        "slice_ports" => more(list(object, "/ports").map(|p| p["port"].to_string()).collect()),
        "cidrs" => strings(object, "/spec/cidrs").join(","),
        "parent_ref" => parent_ref(object),
        "slice_endpoints" => more(slice_endpoints(object)),
        "hosts" => hosts(object),
        "ingress_ports" if list(object, "/spec/tls").next().is_some() => "80, 443".to_owned(),
        "ingress_ports" => "80".to_owned(),
        "ingress_address" => load_balancer(object),
        "external_ip" => external_ip(object),
        "ports" => ports(object),
        "access_modes" => access_modes(object),
        "claim" => match text(object, "/spec/claimRef/name") {
            "" => String::new(),
            name => format!("{}/{name}", text(object, "/spec/claimRef/namespace")),
        },
        "role" => format!("{}/{}", text(object, "/roleRef/kind"), text(object, "/roleRef/name")),
        "owner" => names(object, "/metadata/ownerReferences", "/name"),
        "hpa_reference" => {
            let target = &object["spec"]["scaleTargetRef"];
            format!("{}/{}", text(target, "/kind"), text(target, "/name"))
        }
        "api_service" => match text(object, "/spec/service/name") {
            "" => "Local".to_owned(),
            name => format!("{}/{name}", text(object, "/spec/service/namespace")),
        },
        "available" => condition(object, "Available").unwrap_or("Unknown").to_owned(),
        function => return grouped(function, object, now),
    };
    made.into()
}

/// The functions whose names begin with their kind.
fn grouped(function: &str, object: &Value, now: Timestamp) -> Value {
    let made = match function.split_once('_') {
        Some(("job", rest)) => job(rest, object, now),
        Some(("node", rest)) => node(rest, object),
        Some(("event", rest)) => event(rest, object, now),
        Some(("csr", "duration")) => match object["spec"]["expirationSeconds"].as_i64() {
            Some(seconds) => human(seconds),
            None => "<none>".to_owned(),
        },
        Some(("csr", _)) => csr_condition(object),
        Some(("quota", "requests")) => quota(object, |name| !name.starts_with("limits.")),
        Some(("quota", _)) => quota(object, |name| name.starts_with("limits.")),
        Some(("subjects", kind)) => {
            let subjects = list(object, "/subjects").filter(|s| text(s, "/kind") == kind);
            let shown = subjects.map(|subject| match text(subject, "/namespace") {
                "" => text(subject, "/name").to_owned(),
                namespace => format!("{namespace}/{}", text(subject, "/name")),
            });
            shown.collect::<Vec<_>>().join(", ")
        }
        _ => UNKNOWN_FUNCTION.to_owned(),
    };
    made.into()
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let found = list(object, "/status/conditions").find(|c| text(c, "/type") == kind)?;
    Some(text(found, "/status"))
}

/// What kubectl says of a Pod.
struct PodCells {
    ready: String,
    status: String,
    restarts: String,
}

fn restartable<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    list(pod, "/spec/initContainers")
        .find(|c| text(c, "/name") == name)
        .filter(|c| text(c, "/restartPolicy") == "Always")
}

/// Counts over container statuses.
#[derive(Default)]
struct Tally {
    restarts: i64,
    last: String,
    ready: usize,
}

impl Tally {
    fn add(&mut self, status: &Value) {
        self.restarts += number(status, "/restartCount");
        let at = text(status, "/lastState/terminated/finishedAt");
        if at > self.last.as_str() {
            self.last = at.to_owned();
        }
    }
}

fn terminated(state: &Value, prefix: &str) -> String {
    let ended = &state["terminated"];
    match (text(ended, "/reason"), number(ended, "/signal")) {
        ("", 0) => format!("{prefix}ExitCode:{}", number(ended, "/exitCode")),
        ("", signal) => format!("{prefix}Signal:{signal}"),
        (reason, _) => format!("{prefix}{reason}"),
    }
}

fn pod(pod: &Value, now: Timestamp) -> PodCells {
    let mut status = match text(pod, "/status/reason") {
        "" => text(pod, "/status/phase").to_owned(),
        reason => reason.to_owned(),
    };
    if list(pod, "/status/conditions").any(|c| text(c, "/reason") == "SchedulingGated") {
        status = "SchedulingGated".to_owned();
    }
    let sidecars =
        list(pod, "/spec/initContainers").filter(|c| text(c, "/restartPolicy") == "Always").count();
    let total = list(pod, "/spec/containers").count() + sidecars;
    let (mut tally, sidecar_tally, initializing) = init_containers(pod);
    if let Some(reason) = &initializing {
        status = reason.clone();
    }
    if initializing.is_none() || condition(pod, "Initialized") == Some("True") {
        let ready = tally.ready;
        tally = Tally { ready, ..sidecar_tally };
        app_containers(pod, &mut tally, &mut status);
    }
    if !text(pod, "/metadata/deletionTimestamp").is_empty() {
        let over = matches!(text(pod, "/status/phase"), "Succeeded" | "Failed");
        if text(pod, "/status/reason") == "NodeLost" {
            status = "Unknown".to_owned();
        } else if !over {
            status = "Terminating".to_owned();
        }
    }
    let restarts = match (tally.restarts, tally.last.as_str()) {
        (count, "") | (count @ 0, _) => count.to_string(),
        (count, last) => format!("{count} ({} ago)", since(last, now)),
    };
    PodCells { ready: format!("{}/{total}", tally.ready), status, restarts }
}

/// Tallies of all init containers and of the sidecars among them, and what the first unfinished one
/// is doing.
fn init_containers(pod: &Value) -> (Tally, Tally, Option<String>) {
    let (mut all, mut sidecars) = (Tally::default(), Tally::default());
    let count = list(pod, "/spec/initContainers").count();
    for (at, status) in list(pod, "/status/initContainerStatuses").enumerate() {
        let sidecar = restartable(pod, text(status, "/name")).is_some();
        all.add(status);
        if sidecar {
            sidecars.add(status);
        }
        let state = &status["state"];
        let waiting = text(state, "/waiting/reason");
        if state["terminated"].is_object() && number(state, "/terminated/exitCode") == 0 {
            continue;
        }
        if sidecar && status["started"] == true {
            all.ready += usize::from(status["ready"] == true);
            continue;
        }
        let reason = if state["terminated"].is_object() {
            terminated(state, "Init:")
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{at}/{count}")
        };
        return (all, sidecars, Some(reason));
    }
    (all, sidecars, None)
}

fn app_containers(pod: &Value, tally: &mut Tally, status: &mut String) {
    let (mut running, mut error) = (false, String::new());
    for container in list(pod, "/status/containerStatuses").rev() {
        tally.add(container);
        let state = &container["state"];
        let waiting = text(state, "/waiting/reason");
        if !waiting.is_empty() {
            *status = waiting.to_owned();
        } else if state["terminated"].is_object() {
            *status = terminated(state, "");
            if number(state, "/terminated/exitCode") != 0 {
                error.clone_from(status);
            }
        } else if container["ready"] == true && state["running"].is_object() {
            running = true;
            tally.ready += 1;
        }
    }
    if status == "Completed" {
        if running && condition(pod, "Ready") == Some("True") {
            *status = "Running".to_owned();
        } else if !error.is_empty() {
            *status = error;
        } else if running {
            *status = "NotReady".to_owned();
        }
    }
}

fn pod_gates(pod: &Value) -> String {
    let gates: Vec<_> = list(pod, "/spec/readinessGates").collect();
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let open = gates.iter().filter(|g| condition(pod, text(g, "/conditionType")) == Some("True"));
    format!("{}/{}", open.count(), gates.len())
}

/// A selector in either form, as text.
fn selector(selector: &Value) -> String {
    let structured =
        selector.get("matchLabels").is_some() || selector.get("matchExpressions").is_some();
    if !structured {
        return pairs(selector);
    }
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    let labels = labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
    let expressions = list(selector, "/matchExpressions").map(|expression| {
        let key = text(expression, "/key");
        let values: Vec<_> = list(expression, "/values").filter_map(Value::as_str).collect();
        match text(expression, "/operator") {
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            operator => format!("{key} {} ({})", operator.to_ascii_lowercase(), values.join(",")),
        }
    });
    joined(labels.chain(expressions))
}

fn data(object: &Value) -> usize {
    let count = |key: &str| object[key].as_object().map_or(0, serde_json::Map::len);
    count("data") + count("binaryData")
}

/// The first three, and how many more.
fn more(items: Vec<String>) -> String {
    match items.len() {
        0 => "<unset>".to_owned(),
        1..=3 => items.join(","),
        count => format!("{} + {} more...", items[..3].join(","), count - 3),
    }
}

fn endpoints(object: &Value) -> String {
    let mut shown = Vec::new();
    for subset in list(object, "/subsets") {
        for address in list(subset, "/addresses") {
            for port in list(subset, "/ports") {
                shown.push(format!("{}:{}", text(address, "/ip"), port["port"]));
            }
        }
    }
    if shown.is_empty() { "<none>".to_owned() } else { more(shown) }
}

fn parent_ref(address: &Value) -> String {
    let word = |field: &str| text(address, &format!("/spec/parentRef/{field}"));
    let mut path = word("resource").to_owned();
    if !word("group").is_empty() {
        path = format!("{path}.{}", word("group"));
    }
    [&path, word("namespace"), word("name")]
        .into_iter()
        .filter(|w| !w.is_empty())
        .collect::<Vec<_>>()
        .join("/")
}

fn slice_endpoints(object: &Value) -> Vec<String> {
    let addresses = list(object, "/endpoints").flat_map(|endpoint| list(endpoint, "/addresses"));
    addresses.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn hosts(object: &Value) -> String {
    let hosts = list(object, "/spec/rules").map(|rule| text(rule, "/host").to_owned());
    let hosts: Vec<_> = hosts.filter(|host| !host.is_empty()).collect();
    if hosts.is_empty() { "*".to_owned() } else { more(hosts) }
}

fn load_balancer(object: &Value) -> String {
    let ingress = list(object, "/status/loadBalancer/ingress");
    let shown = ingress.map(|point| match text(point, "/ip") {
        "" => text(point, "/hostname").to_owned(),
        ip => ip.to_owned(),
    });
    shown.collect::<Vec<_>>().join(",")
}

fn external_ip(service: &Value) -> String {
    let own = list(service, "/spec/externalIPs").filter_map(Value::as_str).map(str::to_owned);
    let own: Vec<_> = own.collect();
    match text(service, "/spec/type") {
        "ExternalName" => text(service, "/spec/externalName").to_owned(),
        "LoadBalancer" => {
            let given = load_balancer(service);
            let all: Vec<_> = own.into_iter().chain((!given.is_empty()).then_some(given)).collect();
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        _ => joined(own.into_iter()),
    }
}

fn ports(service: &Value) -> String {
    joined(list(service, "/spec/ports").map(|port| {
        let protocol = text(port, "/protocol");
        match number(port, "/nodePort") {
            0 => format!("{}/{protocol}", port["port"]),
            node => format!("{}:{node}/{protocol}", port["port"]),
        }
    }))
}

fn access_modes(object: &Value) -> String {
    let modes =
        list(object, "/spec/accessModes").filter_map(Value::as_str).map(|mode| match mode {
            "ReadWriteOnce" => "RWO",
            "ReadOnlyMany" => "ROX",
            "ReadWriteMany" => "RWX",
            "ReadWriteOncePod" => "RWOP",
            other => other,
        });
    modes.collect::<Vec<_>>().join(",")
}

fn job(what: &str, job: &Value, now: Timestamp) -> String {
    let is = |kind: &str| condition(job, kind) == Some("True");
    match what {
        "completions" => match job["spec"]["completions"].as_i64() {
            Some(wanted) => format!("{}/{wanted}", number(job, "/status/succeeded")),
            None => match number(job, "/spec/parallelism") {
                0 | 1 => format!("{}/1", number(job, "/status/succeeded")),
                n => format!("{}/1 of {n}", number(job, "/status/succeeded")),
            },
        },
        "duration" => {
            let at = |pointer: &str| text(job, pointer).parse::<Timestamp>().ok();
            let end = at("/status/completionTime").unwrap_or(now);
            let start = at("/status/startTime");
            start.map_or(String::new(), |start| human(end.as_second() - start.as_second()))
        }
        _ if is("Complete") => "Complete".to_owned(),
        _ if is("Failed") => "Failed".to_owned(),
        _ if !text(job, "/metadata/deletionTimestamp").is_empty() => "Terminating".to_owned(),
        _ if is("Suspended") => "Suspended".to_owned(),
        _ if is("FailureTarget") => "FailureTarget".to_owned(),
        _ if is("SuccessCriteriaMet") => "SuccessCriteriaMet".to_owned(),
        _ => "Running".to_owned(),
    }
}

fn node(what: &str, node: &Value) -> String {
    let address = |kind: &str| {
        let found = list(node, "/status/addresses").find(|a| text(a, "/type") == kind);
        found.map_or("<none>", |a| text(a, "/address")).to_owned()
    };
    match what {
        "status" => {
            let ready = match condition(node, "Ready") {
                Some("True") => "Ready",
                Some(_) => "NotReady",
                None => "Unknown",
            };
            let closed = node["spec"]["unschedulable"] == true;
            format!("{ready}{}", if closed { ",SchedulingDisabled" } else { "" })
        }
        "roles" => {
            let labels = node["metadata"]["labels"].as_object().into_iter().flatten();
            joined(labels.filter_map(|(key, value)| {
                match key.strip_prefix("node-role.kubernetes.io/") {
                    Some(role) if !role.is_empty() => Some(role.to_owned()),
                    _ if key == "kubernetes.io/role" => value.as_str().map(str::to_owned),
                    _ => None,
                }
            }))
        }
        "kernel" => {
            let info = &node["status"]["nodeInfo"];
            match (text(info, "/kernelVersion"), text(info, "/architecture")) {
                ("", _) => "<unknown>".to_owned(),
                (kernel, "") => kernel.to_owned(),
                (kernel, architecture) => format!("{kernel} ({architecture})"),
            }
        }
        "internal_ip" => address("InternalIP"),
        _ => address("ExternalIP"),
    }
}

fn event(what: &str, event: &Value, now: Timestamp) -> String {
    let first = match text(event, "/firstTimestamp") {
        "" => text(event, "/eventTime"),
        at => at,
    };
    let series = text(event, "/series/lastObservedTime");
    let last = match (series, text(event, "/lastTimestamp")) {
        ("", "") => first,
        ("", last) => last,
        (series, _) => series,
    };
    match what {
        "last_seen" => since(last, now),
        "first_seen" => since(first, now),
        "object" => {
            let kind = text(event, "/involvedObject/kind").to_ascii_lowercase();
            format!("{kind}/{}", text(event, "/involvedObject/name"))
        }
        "source" => match (text(event, "/source/component"), text(event, "/source/host")) {
            ("", _) => text(event, "/reportingComponent").to_owned(),
            (component, "") => component.to_owned(),
            (component, host) => format!("{component}, {host}"),
        },
        "count" => match number(event, "/series/count").max(number(event, "/count")) {
            0 => "1".to_owned(),
            count => count.to_string(),
        },
        _ => text(event, "/message").trim().to_owned(),
    }
}

fn csr_condition(csr: &Value) -> String {
    let mut shown: Vec<&str> = Vec::new();
    for kind in ["Approved", "Denied", "Failed"] {
        if condition(csr, kind).is_some() {
            shown.push(kind);
        }
    }
    if shown.is_empty() {
        shown.push("Pending");
    }
    if !text(csr, "/status/certificate").is_empty() {
        shown.push("Issued");
    }
    shown.join(",")
}

fn quota(object: &Value, wanted: impl Fn(&str) -> bool) -> String {
    let hard = object["status"]["hard"].as_object().into_iter().flatten();
    let shown = hard.filter(|(name, _)| wanted(name)).map(|(name, limit)| {
        let used = text(&object["status"]["used"], &format!("/{}", name.replace('/', "~1")));
        format!("{name}: {used}/{}", limit.as_str().unwrap_or_default())
    });
    shown.collect::<Vec<_>>().join(", ")
}
