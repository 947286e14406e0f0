//! ConfigMaps and Secrets: keys, sizes, types, immutability.

use alloc::vec::Vec;

use knarr_api::Cause;
use serde_json::Value;

use super::part::Part;
use super::words::config_key;

/// One mebibyte.
const MAX_BYTES: usize = 1 << 20;
const IMMUTABLE: &str = "field is immutable when `immutable` is set";

pub(super) fn config_map(tree: &Value, live: Option<&Value>, out: &mut Vec<Cause>) {
    let root = Part::root(tree);
    frozen(&root, live, &["data", "binaryData"], out);
    let (data, binary) = (root.get("data"), root.get("binaryData"));
    let mut size = 0;
    for (key, value) in data.entries() {
        check_key(&value, key, out);
        if binary.key(key).is_set() {
            value.invalid_as(&key.into(), "duplicate of key present in binaryData", out);
        }
        size += value.text().len();
    }
    for (key, value) in binary.entries() {
        check_key(&value, key, out);
        size += decoded_len(value.text());
    }
    if size > MAX_BYTES {
        root.too_long(MAX_BYTES, out);
    }
}

pub(super) fn secret(tree: &Value, live: Option<&Value>, out: &mut Vec<Cause>) {
    let root = Part::root(tree);
    if let Some(live) = live {
        root.get("type").immutable(&live["type"], out);
    }
    frozen(&root, live, &["data"], out);
    let data = root.get("data");
    let mut size = 0;
    for (key, value) in data.entries() {
        check_key(&value, key, out);
        size += decoded_len(value.text());
    }
    if size > MAX_BYTES {
        data.too_long(MAX_BYTES, out);
    }
    secret_type(&root, &data, out);
}

/// The keys that a type of secret promises.
fn secret_type(root: &Part<'_>, data: &Part<'_>, out: &mut Vec<Cause>) {
    let has = |key: &str| data.key(key).is_set();
    let mut require = |keys: &[&str]| {
        let missing = keys.iter().filter(|key| !has(key));
        missing.for_each(|key| data.key(key).required("", out));
    };
    match root.get("type").text() {
        "kubernetes.io/service-account-token" => {
            let name = root.get("metadata").get("annotations");
            let name = name.key("kubernetes.io/service-account.name");
            if name.is_empty() {
                name.required("", out);
            }
        }
        "kubernetes.io/dockercfg" => docker(&data.key(".dockercfg"), out),
        "kubernetes.io/dockerconfigjson" => docker(&data.key(".dockerconfigjson"), out),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            require(&["username", "password"]);
        }
        "kubernetes.io/ssh-auth" if data.key("ssh-privatekey").is_empty() => {
            data.key("ssh-privatekey").required("", out);
        }
        "kubernetes.io/tls" => require(&["tls.crt", "tls.key"]),
        _ => {}
    }
}

/// Credentials for registries are a JSON object.
fn docker(part: &Part<'_>, out: &mut Vec<Cause>) {
    use base64::Engine;
    if !part.is_set() {
        return part.required("", out);
    }
    let bytes = base64::engine::general_purpose::STANDARD.decode(part.text()).unwrap_or_default();
    let why = match serde_json::from_slice::<Value>(&bytes) {
        Ok(Value::Object(_) | Value::Null) => return,
        Ok(_) => "json: cannot unmarshal into Go value of type map[string]interface {}",
        Err(error) if error.is_eof() => "unexpected end of JSON input",
        Err(_) => "invalid character looking for beginning of value",
    };
    part.invalid_as(&"<secret contents redacted>".into(), why, out);
}

/// What was declared immutable stays as it is.
fn frozen(root: &Part<'_>, live: Option<&Value>, fields: &[&str], out: &mut Vec<Cause>) {
    let Some(live) = live.filter(|live| live["immutable"] == true) else { return };
    if root.get("immutable").value != true {
        root.get("immutable").forbidden(IMMUTABLE, out);
    }
    for field in fields.iter().filter(|field| root.get(field).value != &live[**field]) {
        root.get(field).forbidden(IMMUTABLE, out);
    }
}

fn check_key(part: &Part<'_>, key: &str, out: &mut Vec<Cause>) {
    if let Err(why) = config_key(key) {
        part.invalid_as(&key.into(), &why, out);
    }
}

/// How many bytes a base64 text stands for.
fn decoded_len(text: &str) -> usize {
    text.len() / 4 * 3 - text.bytes().rev().take_while(|b| *b == b'=').count().min(text.len() / 4)
}
