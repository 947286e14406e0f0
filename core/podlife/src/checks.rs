//! What a probe or a lifecycle hook does, resolved to what the node has to do: names of ports are
//! numbers, and the Pod's address stands where no host is named.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use knarr_typed::k8s_openapi::api::core::v1::{
    HTTPGetAction, LifecycleHandler, Probe, TCPSocketAction,
};
use knarr_typed::k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use knarr_typed::{Container, Pod};

use crate::env::expand;

/// One thing to do to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// Run a command in it.
    Exec(Vec<String>),
    /// GET a page.
    Http(HttpGet),
    /// Open a connection.
    Tcp {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// Ask the gRPC health service, version 1.
    Grpc {
        /// Address.
        host: String,
        /// Port.
        port: u16,
        /// The service asked about; empty is the server as a whole.
        service: String,
    },
    /// Wait that many seconds.
    Sleep(u64),
}

/// A page to get.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpGet {
    /// Whether it goes over TLS (the certificate is not looked at).
    pub scheme: Scheme,
    /// Name or address to connect to.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path and query.
    pub path: String,
    /// Headers in order; `Host` among them wins over the address.
    pub headers: Vec<(String, String)>,
}

/// How a page is got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheme {
    /// In clear.
    #[default]
    Http,
    /// Over TLS.
    Https,
}

/// Who asks, as it stands in `User-Agent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Probe,
    Lifecycle,
}

/// Who is checked.
struct Target<'a> {
    container: &'a Container,
    address: &'a str,
    purpose: Purpose,
}

impl Target<'_> {
    fn port(&self, port: &IntOrString) -> Result<u16, String> {
        let number = match port {
            IntOrString::Int(number) => *number,
            IntOrString::String(name) => {
                let mut ports = self.container.ports.iter().flatten();
                let named = ports.find(|port| port.name.as_ref() == Some(name));
                match named.map(|port| port.container_port).or_else(|| name.parse().ok()) {
                    Some(number) => number,
                    None => return Err(format!("couldn't find port: {name:?}")),
                }
            }
        };
        let number = u16::try_from(number).ok().filter(|number| *number > 0);
        number.ok_or_else(|| format!("invalid port number: {}", text(port)))
    }

    fn host(&self, named: &Option<String>) -> String {
        named.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| self.address.to_owned())
    }

    fn http(&self, get: &HTTPGetAction) -> Result<Check, String> {
        let scheme = match get.scheme.as_deref() {
            Some("HTTPS") => Scheme::Https,
            _ => Scheme::Http,
        };
        let path = get.path.clone().unwrap_or_default();
        let path = if path.starts_with('/') { path } else { format!("/{path}") };
        let headers = get.http_headers.iter().flatten();
        let mut headers: Vec<(String, String)> =
            headers.map(|header| (header.name.clone(), header.value.clone())).collect();
        self.default_headers(&mut headers);
        let (host, port) = (self.host(&get.host), self.port(&get.port)?);
        Ok(Check::Http(HttpGet { scheme, host, port, path, headers }))
    }

    /// Upstream's own headers, where the Pod does not set them; an empty `Accept` is none.
    fn default_headers(&self, headers: &mut Vec<(String, String)>) {
        let has = |headers: &[(String, String)], wanted: &str| {
            headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(wanted))
        };
        if !has(headers, "User-Agent") {
            let purpose = match self.purpose {
                Purpose::Probe => "kube-probe/1.36",
                Purpose::Lifecycle => "kube-lifecycle/1.36",
            };
            headers.push(("User-Agent".to_owned(), purpose.to_owned()));
        }
        if !has(headers, "Accept") {
            headers.push(("Accept".to_owned(), "*/*".to_owned()));
        }
        let empty =
            |name: &str, value: &str| name.eq_ignore_ascii_case("Accept") && value.is_empty();
        headers.retain(|(name, value)| !empty(name, value));
    }

    fn tcp(&self, socket: &TCPSocketAction) -> Result<Check, String> {
        Ok(Check::Tcp { host: self.host(&socket.host), port: self.port(&socket.port)? })
    }
}

fn text(port: &IntOrString) -> String {
    match port {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(name) => name.clone(),
    }
}

/// What a probe does. A command sees the container's literal variables only, as upstream has it.
pub(crate) fn of_probe(
    pod: &Pod,
    container: &Container,
    probe: &Probe,
    address: &str,
) -> Result<Check, String> {
    let target = Target { container, address, purpose: Purpose::Probe };
    if let Some(exec) = &probe.exec {
        let lookup = |name: &str| {
            let mut all = container.env.iter().flatten().rev();
            all.find(|env| env.name == name).and_then(|env| env.value.clone())
        };
        let command = exec.command.iter().flatten().map(|word| expand(word, lookup));
        return Ok(Check::Exec(command.collect()));
    }
    if let Some(get) = &probe.http_get {
        return target.http(get);
    }
    if let Some(socket) = &probe.tcp_socket {
        return target.tcp(socket);
    }
    let Some(grpc) = &probe.grpc else {
        let name = |word: &Option<String>| word.clone().unwrap_or_default();
        let (pod, namespace) = (name(&pod.metadata.name), name(&pod.metadata.namespace));
        return Err(format!("missing probe handler for {pod}_{namespace}:{}", container.name));
    };
    let port = target.port(&IntOrString::Int(grpc.port))?;
    let service = grpc.service.clone().unwrap_or_default();
    Ok(Check::Grpc { host: address.to_owned(), port, service })
}

/// What a lifecycle hook does.
fn of_hook(container: &Container, hook: &LifecycleHandler, address: &str) -> Result<Check, String> {
    let target = Target { container, address, purpose: Purpose::Lifecycle };
    if let Some(exec) = &hook.exec {
        return Ok(Check::Exec(exec.command.clone().unwrap_or_default()));
    }
    if let Some(get) = &hook.http_get {
        return target.http(get);
    }
    if let Some(sleep) = &hook.sleep {
        return Ok(Check::Sleep(sleep.seconds.max(0).unsigned_abs()));
    }
    Err("Cannot run handler: invalid handler".to_owned())
}

/// A moment of a container's life that may have a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Right after its process began.
    PostStart,
    /// Before its process is told to end.
    PreStop,
}

/// What a container does at a moment of its life, if anything.
///
/// # Errors
/// When the hook cannot be run at all, in words.
pub fn hook(
    pod: &Pod,
    container: &str,
    moment: Hook,
    addresses: &[String],
) -> Option<Result<Check, String>> {
    let container = find(pod, container)?;
    let lifecycle = container.lifecycle.as_ref()?;
    let hook = match moment {
        Hook::PostStart => lifecycle.post_start.as_ref()?,
        Hook::PreStop => lifecycle.pre_stop.as_ref()?,
    };
    let address = addresses.first().map(String::as_str).unwrap_or_default();
    Some(of_hook(container, hook, address))
}

/// A container of a Pod by its name.
pub(crate) fn find<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    let mut all = spec.init_containers.iter().flatten().chain(&spec.containers);
    all.find(|container| container.name == name)
}
