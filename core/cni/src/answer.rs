//! What a plugin answers: a result with addresses, or an error.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::IpAddr;

use serde_json::{Value, json};

use crate::list::Refused;

/// Reads the result of an ADD into the form of `version`, in which the next plugin is told of it.
///
/// # Errors
/// It is no JSON object.
pub fn result(version: &str, stdout: &[u8]) -> Result<Value, Refused> {
    let read: Result<Value, _> = serde_json::from_slice(stdout);
    let mut result = match read {
        Ok(result) if result.is_object() => result,
        Ok(_) => return Err(Refused::unread("it is no object")),
        Err(error) => return Err(Refused::unread(&error.to_string())),
    };
    result["cniVersion"] = version.into();
    for ip in result["ips"].as_array_mut().into_iter().flatten() {
        let v6 = ip["address"].as_str().is_some_and(|address| address.contains(':'));
        let Value::Object(ip) = ip else { continue };
        // The one thing in which the forms differ.
        if version.starts_with("0.") {
            ip.insert("version".into(), json!(if v6 { "6" } else { "4" }));
        } else {
            ip.remove("version");
        }
    }
    if result["ips"].is_null() {
        result.as_object_mut().into_iter().for_each(|all| drop(all.remove("ips")));
    }
    Ok(result)
}

impl Refused {
    fn unread(why: &str) -> Self {
        Self::from(format!("the plugin's result cannot be read: {why}"))
    }
}

/// The Pod's addresses in a result: those of its link, the first of each family.
pub fn addresses(result: &Value, interface: &str) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    for ip in result["ips"].as_array().into_iter().flatten() {
        let of = ip["interface"].as_u64().and_then(|at| usize::try_from(at).ok());
        if of.is_some_and(|at| result["interfaces"][at]["name"] != interface) {
            continue;
        }
        let text = ip["address"].as_str().unwrap_or_default();
        let address: Option<IpAddr> = text.split('/').next().and_then(|ip| ip.parse().ok());
        found.extend(address.filter(|ip| found.iter().all(|o| o.is_ipv4() != ip.is_ipv4())));
    }
    found
}

/// What a plugin that ended with `exit` has to say, as libcni puts it.
pub fn failure(stdout: &[u8], stderr: &[u8], exit: &str) -> String {
    if stdout.is_empty() && stderr.is_empty() {
        return format!("netplugin failed with no error message: {exit}");
    }
    if stdout.is_empty() {
        return format!("netplugin failed: {:?}", String::from_utf8_lossy(stderr));
    }
    let error: Value = match serde_json::from_slice(stdout) {
        Ok(error) => error,
        Err(error) => {
            let said = String::from_utf8_lossy(stdout);
            return format!(
                "netplugin failed but error parsing its diagnostic message {said:?}: {error}"
            );
        }
    };
    let word = |key: &str| error[key].as_str().unwrap_or_default();
    match (word("msg"), word("details")) {
        (message, "") => message.to_string(),
        (message, details) => format!("{message}; {details}"),
    }
}
