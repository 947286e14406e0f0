//! Requests that a node or a Pod answers: logs, sessions with containers, proxies. Where they go.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use knarr_api::{Cause, GroupResource, Kind, ObjectKey, Reason, Status};
use serde_json::Value;

use crate::auth;
use crate::call::World;
use crate::object::text;
use crate::request::{Query, Request, RequestInfo, User};
use crate::response::{Body, Onward, Passage, Response, Road};

const KUBELET_PORT: &str = "10250";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

fn onward(host: String, target: String, road: Road, passage: Passage) -> Response {
    let mut response = Response::chunks(200, Vec::new());
    response.content_type = "text/plain";
    response.body = Body::Onward(Onward { host, target, road, passage });
    response
}

/// A container's log.
pub(crate) fn log(
    world: &World<'_>,
    kind: &Kind,
    info: &RequestInfo,
    query: &str,
) -> Result<Response, Status> {
    let wrong = wrong_log_options(&info.query);
    if !wrong.is_empty() {
        return Err(Status::invalid_options("PodLogOptions", &wrong));
    }
    let pod = pod(world, kind, info)?;
    let container = container_of(&pod, info)?;
    if text(&pod, "/spec/nodeName").is_empty() {
        // As upstream: nothing has been said yet.
        return Ok(Response::text(200, ""));
    }
    let ObjectKey { namespace, name } = &info.object;
    let target = format!("/containerLogs/{namespace}/{name}/{container}?{query}");
    Ok(onward(node_of(world, &pod)?, target, Road::Node, Passage::Text))
}

/// What is wrong with PodLogOptions.
fn wrong_log_options(query: &Query) -> Vec<Cause> {
    let numbers = [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ];
    let mut wrong: Vec<Cause> = Vec::new();
    for (name, least, rule) in numbers {
        let number = query.get(name).parse::<i64>().ok().filter(|number| *number < least);
        wrong.extend(number.map(|number| Cause::invalid(name, &number.into(), rule)));
    }
    if query.has("sinceSeconds") && query.has("sinceTime") {
        let rule = "at most one of `sinceTime` or `sinceSeconds` may be specified";
        wrong.push(Cause::forbidden("", rule));
    }
    let streams = ["All", "Stderr", "Stdout"];
    match query.get("stream") {
        "" | "All" => {}
        stream if !streams.contains(&stream) => {
            wrong.push(Cause::not_supported("stream", &stream.into(), &streams));
        }
        _ if query.has("tailLines") => {
            let rule = "`tailLines` and specific `stream` are mutually exclusive for now";
            wrong.push(Cause::forbidden("", rule));
        }
        _ => {}
    }
    wrong
}

/// A session with a container or with a Pod's ports; whoever opens one needs to be allowed to
/// create it, by whatever method it comes.
pub(crate) fn session(
    world: &World<'_>,
    kind: &Kind,
    info: &RequestInfo,
    user: &User,
) -> Result<Response, Status> {
    auth::authorize(world, user, &RequestInfo { verb: "create", ..info.clone() })?;
    let pod = pod(world, kind, info)?;
    let ObjectKey { namespace, name } = &info.object;
    let target = match info.subresource.as_str() {
        "portforward" => {
            let ports = info.query.all("ports").collect::<Vec<_>>().join(",");
            format!("/portForward/{namespace}/{name}?port={}", encoded(&ports))
        }
        verb => {
            let container = container_of(&pod, info)?;
            format!("/{verb}/{namespace}/{name}/{container}?{}", options(info)?)
        }
    };
    Ok(onward(node_of(world, &pod)?, target, Road::Node, Passage::Session))
}

/// PodExecOptions and PodAttachOptions as a node reads them.
fn options(info: &RequestInfo) -> Result<String, Status> {
    let names = [("stdin", "input"), ("stdout", "output"), ("stderr", "error")];
    let wanted = names.iter().filter(|(name, _)| info.query.flag(name));
    let streams: Vec<&str> = wanted.map(|(_, there)| *there).collect();
    if streams.is_empty() {
        return Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    let terminal = info.query.flag("tty").then_some("tty");
    let flags = streams.into_iter().chain(terminal).map(|name| format!("{name}=1"));
    let commands: Vec<String> =
        info.query.all("command").map(|word| format!("command={}", encoded(word))).collect();
    if info.subresource == "exec" && commands.is_empty() {
        let text = "you must specify at least one command for the container";
        return Err(Status::bad_request(text));
    }
    Ok(flags.chain(commands).collect::<Vec<_>>().join("&"))
}

/// HTTP to a node, a Pod or a Service.
pub(crate) fn proxy(
    world: &World<'_>,
    kind: &Kind,
    info: &RequestInfo,
    request: &Request,
) -> Result<Response, Status> {
    let wanted = Wanted::parse(&info.object.name).ok_or_else(|| {
        let what = kind.singular.as_str();
        Status::bad_request(format!("invalid {what} request {:?}", info.object.name))
    })?;
    let key = ObjectKey::new(&info.object.namespace, wanted.name);
    let missing = || Status::not_found(kind.group_resource(), wanted.name);
    let object = world.snapshot.tree(kind, &key).ok_or_else(missing)?;
    let road = if wanted.scheme == "https" { Road::Https } else { Road::Http };
    let (host, road) = match info.resource.as_str() {
        "nodes" if wanted.port.is_empty() => (address_of(world, wanted.name)?, Road::Node),
        "nodes" => (joined(&internal_address(&object, wanted.name), wanted.port), road),
        "pods" => (pod_host(&object, wanted.port)?, road),
        _ => (service_host(world, &object, &key, &wanted)?, road),
    };
    let query =
        if request.query.is_empty() { String::new() } else { format!("?{}", request.query) };
    let target = format!("/{}{query}", rest(&request.path));
    Ok(onward(host, target, road, Passage::Whole))
}

/// Whether a path belongs to a proxy: its body is not the API's to read.
pub fn is_proxy(path: &str) -> bool {
    matches!(
        path.split('/').collect::<Vec<_>>()[..],
        ["", "api", _, "nodes", _, "proxy", ..]
            | ["", "api", _, "namespaces", _, "pods" | "services", _, "proxy", ..]
    )
}

/// What follows `/proxy/` in a path, as it was written.
fn rest(path: &str) -> &str {
    let namespaced = path.split('/').nth(3) == Some("namespaces");
    path.splitn(if namespaced { 9 } else { 7 }, '/')
        .nth(if namespaced { 8 } else { 6 })
        .unwrap_or("")
}

/// `NAME`, `NAME:PORT` or `SCHEME:NAME:PORT`.
struct Wanted<'a> {
    scheme: &'a str,
    name: &'a str,
    port: &'a str,
}

impl<'a> Wanted<'a> {
    fn parse(id: &'a str) -> Option<Self> {
        let (scheme, name, port) = match id.split(':').collect::<Vec<_>>()[..] {
            [name] => ("", name, ""),
            [name, port] => ("", name, port),
            [scheme @ ("" | "http" | "https"), name, port] => (scheme, name, port),
            _ => return None,
        };
        (!name.is_empty()).then_some(Self { scheme, name, port })
    }
}

fn joined(host: &str, port: &str) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn pod_host(pod: &Value, port: &str) -> Result<String, Status> {
    let containers = pod.pointer("/spec/containers").and_then(Value::as_array);
    let mut ports = containers.into_iter().flatten().filter_map(|c| c.pointer("/ports/0"));
    let first = ports.next().map(|port| port["containerPort"].to_string());
    let port = if port.is_empty() { first.unwrap_or("80".to_owned()) } else { port.to_owned() };
    match text(pod, "/status/podIP") {
        "" => Err(Status::bad_request("address not allowed")),
        address => Ok(joined(address, &port)),
    }
}

/// A ready endpoint of a Service.
fn service_host(
    world: &World<'_>,
    service: &Value,
    key: &ObjectKey,
    wanted: &Wanted<'_>,
) -> Result<String, Status> {
    let name = &key.name;
    let unavailable = |why: String| Status::new(Reason::ServiceUnavailable, why);
    let ports = service.pointer("/spec/ports").and_then(Value::as_array);
    let ports: Vec<&Value> = ports.into_iter().flatten().collect();
    let number = wanted.port.parse::<u64>().ok();
    let meant = |port: &&&Value| {
        text(port, "/name") == wanted.port || number.is_some() && port["port"].as_u64() == number
    };
    let port = match (&ports[..], wanted.port) {
        ([only], "") => only,
        _ => ports.iter().find(meant).ok_or_else(|| {
            unavailable(format!("no service port {:?} found for service {name:?}", wanted.port))
        })?,
    };
    let slices = GroupResource { group: "discovery.k8s.io", resource: "endpointslices" };
    let kind = world.catalog().preferred(slices).ok_or_else(Status::no_such_path)?;
    let slices = world.snapshot.prefix(&kind.namespace_prefix(&key.namespace));
    let slices = slices.iter().filter_map(|kv| crate::object::tree(&kv.value).ok());
    let ours = slices.filter(|slice| slice["metadata"]["labels"][SERVICE_NAME] == **name);
    let hosts: Vec<String> = ours.flat_map(|slice| ready(&slice, text(port, "/name"))).collect();
    let at = usize::try_from(world.seed % (hosts.len().max(1) as u128)).unwrap_or_default();
    let none = || unavailable(format!("no endpoints available for service {name:?}"));
    hosts.into_iter().nth(at).ok_or_else(none)
}

/// Where the ready endpoints of a slice have a port of a name.
fn ready(slice: &Value, port: &str) -> Vec<String> {
    let list = |name: &str| slice[name].as_array().cloned().unwrap_or_default();
    let port = list("ports").into_iter().find(|p| text(p, "/name") == port);
    let Some(port) = port.map(|port| port["port"].to_string()) else { return Vec::new() };
    let ready =
        |endpoint: &Value| endpoint.pointer("/conditions/ready") != Some(&Value::Bool(false));
    let endpoints = list("endpoints").into_iter().filter(ready);
    endpoints.map(|endpoint| joined(text(&endpoint, "/addresses/0"), &port)).collect()
}

fn pod(world: &World<'_>, kind: &Kind, info: &RequestInfo) -> Result<Value, Status> {
    let missing = || Status::not_found(kind.group_resource(), &info.object.name);
    world.snapshot.tree(kind, &info.object).ok_or_else(missing)
}

/// Where the server of a Pod's node listens.
fn node_of(world: &World<'_>, pod: &Value) -> Result<String, Status> {
    match text(pod, "/spec/nodeName") {
        "" => {
            let name = text(pod, "/metadata/name");
            Err(Status::bad_request(format!("pod {name} does not have a host assigned")))
        }
        node => address_of(world, node),
    }
}

/// Where the node's own server listens, `host:port`.
fn address_of(world: &World<'_>, node: &str) -> Result<String, Status> {
    let nodes = GroupResource { group: "", resource: "nodes" };
    let kind = world.catalog().preferred(nodes).ok_or_else(Status::no_such_path)?;
    let missing = || Status::not_found(nodes, node);
    let object = world.snapshot.tree(kind, &ObjectKey::new("", node)).ok_or_else(missing)?;
    let port = object.pointer("/status/daemonEndpoints/kubeletEndpoint/Port");
    let port = port.map_or(KUBELET_PORT.to_owned(), ToString::to_string);
    Ok(joined(&internal_address(&object, node), &port))
}

fn internal_address(node: &Value, name: &str) -> String {
    let addresses = node.pointer("/status/addresses").and_then(Value::as_array);
    let internal = addresses.into_iter().flatten().find(|a| text(a, "/type") == "InternalIP");
    internal.map_or(name, |address| text(address, "/address")).to_owned()
}

/// The container that is meant: the named one, or the only one.
fn container_of(pod: &Value, info: &RequestInfo) -> Result<String, Status> {
    let (name, wanted) = (&info.object.name, info.query.get("container"));
    let names = |list: &str| -> Vec<&str> {
        let list = pod["spec"][list].as_array().into_iter().flatten();
        list.map(|container| text(container, "/name")).collect()
    };
    let all = ["initContainers", "containers", "ephemeralContainers"].map(names).concat();
    match (wanted, &names("containers")[..]) {
        ("", [only]) => Ok((*only).to_owned()),
        ("", _) => Err(Status::bad_request(format!(
            "a container name must be specified for pod {name}, choose one of: [{}]",
            all.join(" ")
        ))),
        (wanted, _) if all.contains(&wanted) => Ok(wanted.to_owned()),
        (wanted, _) => {
            Err(Status::bad_request(format!("container {wanted} is not valid for pod {name}")))
        }
    }
}

/// Encodes a word for a query.
fn encoded(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let one =
        |byte: u8| if keep(byte) { (byte as char).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxied_path_is_passed_on_as_it_was_written() {
        assert_eq!(rest("/api/v1/nodes/n/proxy/a%2Fb/"), "a%2Fb/");
        assert_eq!(rest("/api/v1/nodes/n/proxy"), "");
        assert_eq!(rest("/api/v1/namespaces/x/pods/p:80/proxy/a/b"), "a/b");
        assert!(is_proxy("/api/v1/namespaces/x/services/https:s:web/proxy/"));
        assert!(!is_proxy("/api/v1/namespaces/x/pods/proxy"));
        assert!(!is_proxy("/api/v1/namespaces/proxy/pods/x"));
    }
}
