//! Where a registry's images are really fetched: `certs.d/<host>/hosts.toml`.
//!
//! The format is containerd's, because it is what operators of clusters have on their disks
//! already and what registries' manuals show; k3s's `registries.yaml` is translated into it by
//! k3s itself. A folder is named after the registry (`host`, `host:port` or `host_port_`), or
//! `_default` for all that have none. Without a file, a registry on the loopback is spoken to by
//! plain HTTP, as docker does, and every other one by HTTPS with the system's roots.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::registry::RegistryError;

/// Longest file that is read.
const MAX_FILE: u64 = 1 << 20;

/// One place to fetch from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Host {
    /// `https://host[:port]/v2`, without a slash at the end.
    pub(crate) base: String,
    /// Whether it is the registry itself; only that is shown credentials.
    pub(crate) own: bool,
    /// Whether tags may be resolved there.
    pub(crate) resolve: bool,
    /// PEM files of authorities trusted beside the system's.
    pub(crate) ca: Vec<PathBuf>,
    /// PEM files of a client certificate and its key.
    pub(crate) client: Option<(PathBuf, PathBuf)>,
    /// Whether any certificate will do.
    pub(crate) skip_verify: bool,
    /// Sent with every request.
    pub(crate) headers: Vec<(String, String)>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Settings {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<toml::Value>,
    skip_verify: bool,
    override_path: bool,
    header: toml::Table,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct File {
    server: Option<String>,
    host: toml::Table,
    #[serde(flatten)]
    own: Settings,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

/// How a registry without a file is spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheme {
    /// HTTPS, but plain HTTP on the loopback.
    #[default]
    Usual,
    /// Plain HTTP.
    Plain,
}

/// The places of a registry, in the order in which they are asked; the registry itself is last.
///
/// # Errors
/// The registry's file cannot be read.
pub(crate) fn hosts(
    dir: Option<&Path>,
    registry: &str,
    scheme: Scheme,
) -> Result<Vec<Host>, RegistryError> {
    let Some((folder, text)) = dir.and_then(|dir| find(dir, registry)) else {
        return Ok(vec![Host { base: usual(registry, scheme), ..own() }]);
    };
    let bad = |why: &dyn std::fmt::Display| {
        RegistryError::Config(format!("{}/hosts.toml: {why}", folder.display()))
    };
    let file: File = toml::from_str(&text).map_err(|error| bad(&error.message()))?;
    let mut hosts = Vec::new();
    for (url, settings) in file.host {
        let settings: Settings = settings.try_into().map_err(|error| bad(&error))?;
        let pulls =
            settings.capabilities.as_ref().is_none_or(|all| all.iter().any(|c| c == "pull"));
        if pulls {
            let base = base(&url, scheme, settings.override_path);
            let own = base == usual(registry, scheme);
            hosts.push(Host { own, ..host(base, settings, &folder) });
        }
    }
    let server = file
        .server
        .map_or(usual(registry, scheme), |url| base(&url, scheme, file.own.override_path));
    if !hosts.iter().any(|host| host.base == server) {
        hosts.push(Host { own: true, ..host(server, file.own, &folder) });
    }
    Ok(hosts)
}

fn own() -> Host {
    Host { own: true, resolve: true, ..Host::default() }
}

fn host(base: String, settings: Settings, folder: &Path) -> Host {
    let ca = match settings.ca {
        None => Vec::new(),
        Some(OneOrMany::One(path)) => vec![path],
        Some(OneOrMany::Many(paths)) => paths,
    };
    let text = |value: &toml::Value| match value {
        toml::Value::Array(all) => all.first().and_then(toml::Value::as_str).map(str::to_owned),
        value => value.as_str().map(str::to_owned),
    };
    let headers = settings.header.iter();
    Host {
        base,
        own: false,
        resolve: settings.capabilities.is_none_or(|all| all.iter().any(|c| c == "resolve")),
        ca: ca.into_iter().map(|path| folder.join(path)).collect(),
        client: settings.client.and_then(|client| pair(&client, folder)),
        skip_verify: settings.skip_verify,
        headers: headers.filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect(),
    }
}

/// `"both.pem"`, `["cert.pem", "key.pem"]` or a list whose first element is one of these.
fn pair(client: &toml::Value, folder: &Path) -> Option<(PathBuf, PathBuf)> {
    let path = |value: &toml::Value| value.as_str().map(|name| folder.join(name));
    match client {
        toml::Value::Array(all) if all.first()?.is_array() => pair(all.first()?, folder),
        toml::Value::Array(all) => {
            let cert = path(all.first()?)?;
            let key = all.get(1).and_then(path).filter(|key| key != folder);
            Some((cert.clone(), key.unwrap_or(cert)))
        }
        value => path(value).map(|both| (both.clone(), both)),
    }
}

fn find(dir: &Path, registry: &str) -> Option<(PathBuf, String)> {
    let with_port = registry.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
    let names = [Some(registry.to_owned()), with_port, Some("_default".to_owned())];
    names.into_iter().flatten().find_map(|name| {
        let folder = dir.join(name);
        let file = folder.join("hosts.toml");
        let short = fs::metadata(&file).is_ok_and(|meta| meta.len() <= MAX_FILE);
        short.then(|| fs::read_to_string(file).ok().map(|text| (folder, text))).flatten()
    })
}

/// A URL of a file in full: with a scheme, with `/v2` unless the file says that its path is whole.
fn base(url: &str, scheme: Scheme, whole_path: bool) -> String {
    let url = url.trim_end_matches('/');
    let url = match url.contains("://") {
        true => url.to_owned(),
        false => format!("{}://{url}", scheme_of(url, scheme)),
    };
    if whole_path || url.ends_with("/v2") { url } else { format!("{url}/v2") }
}

fn usual(registry: &str, scheme: Scheme) -> String {
    let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
    format!("{}://{host}/v2", scheme_of(host, scheme))
}

fn scheme_of(host: &str, scheme: Scheme) -> &'static str {
    if scheme == Scheme::Plain || is_loopback(host) { "http" } else { "https" }
}

fn is_loopback(host: &str) -> bool {
    let host = host.split('/').next().unwrap_or_default();
    if let Some(address) = host.strip_prefix('[') {
        return address.split(']').next() == Some("::1");
    }
    let host = host.split(':').next().unwrap_or_default();
    host == "localhost" || host.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test fails by panicking
mod tests {
    use super::*;

    fn bases(dir: Option<&Path>, registry: &str) -> Vec<String> {
        let hosts = hosts(dir, registry, Scheme::Usual).unwrap();
        hosts
            .into_iter()
            .map(|host| format!("{}{}", host.base, if host.own { "!" } else { "" }))
            .collect()
    }

    #[test]
    fn without_a_file_only_the_loopback_is_plain() {
        for (registry, base) in [
            ("docker.io", "https://registry-1.docker.io/v2!"),
            ("localhost:5000", "http://localhost:5000/v2!"),
            ("127.0.0.2", "http://127.0.0.2/v2!"),
            ("[::1]:5000", "http://[::1]:5000/v2!"),
            ("10.0.0.1:5000", "https://10.0.0.1:5000/v2!"),
            ("localhost.example.com", "https://localhost.example.com/v2!"),
        ] {
            assert_eq!(bases(None, registry), [base]);
        }
    }

    #[test]
    fn a_file_names_mirrors_in_order_and_the_registry_comes_last() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            fs::create_dir_all(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("hosts.toml"), text).unwrap();
        };
        write(
            "docker.io",
            r#"server = "https://docker.io"
            [host."https://z.example"]
              capabilities = ["pull"]
              ca = "ca.crt"
              [host."https://z.example".header]
                x-team = "a"
            [host."http://a.example/v2/cache"]
              override_path = true
              skip_verify = true
            [host."https://push.example"]
              capabilities = ["push"]"#,
        );
        write("reg_5000_", r#"server = "http://10.0.0.1""#);
        write("_default", r#"[host."https://all.example"]"#);
        write("broken", "server = ");
        let found = hosts(Some(dir.path()), "docker.io", Scheme::Usual).unwrap();
        assert_eq!(found[0].ca, [dir.path().join("docker.io/ca.crt")]);
        assert_eq!(found[0].headers, [("x-team".to_owned(), "a".to_owned())]);
        assert!(!found[0].resolve && found[1].resolve && found[1].skip_verify);
        assert_eq!(
            bases(Some(dir.path()), "docker.io"),
            ["https://z.example/v2", "http://a.example/v2/cache", "https://docker.io/v2!"]
        );
        assert_eq!(bases(Some(dir.path()), "reg:5000"), ["http://10.0.0.1/v2!"]);
        let all = ["https://all.example/v2", "https://quay.io/v2!"];
        assert_eq!(bases(Some(dir.path()), "quay.io"), all);
        assert!(hosts(Some(dir.path()), "broken", Scheme::Usual).is_err());
    }
}
