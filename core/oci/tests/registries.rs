//! Pull secrets and challenges, read.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use knarr_oci::challenge::Challenge;
use knarr_oci::credentials::{ConfigForm, Keyring};

fn keyring(keys: &[&str]) -> Keyring {
    let auths: serde_json::Map<String, serde_json::Value> = keys
        .iter()
        .map(|key| ((*key).to_owned(), serde_json::json!({"username": key, "password": "p"})))
        .collect();
    let mut ring = Keyring::default();
    ring.add(serde_json::json!({ "auths": auths }).to_string().as_bytes(), ConfigForm::Json)
        .unwrap();
    ring
}

fn names(ring: &Keyring, image: &str) -> Vec<String> {
    ring.lookup(image).into_iter().map(|found| found.username).collect()
}

#[test]
fn keys_match_hosts_ports_paths_and_globs() {
    for (key, image, fits) in [
        ("quay.io", "quay.io/a/b", true),
        ("https://quay.io/v2/", "quay.io/a/b", true),
        ("http://quay.io/v1/a", "quay.io/a/b", true),
        ("quay.io/a", "quay.io/a/b", true),
        ("quay.io/b", "quay.io/a/b", false),
        ("quay.io", "quay.io:443/a", false),
        ("quay.io:443", "quay.io:443/a", true),
        ("*.io", "quay.io/a", true),
        ("*.io", "x.quay.io/a", false),
        ("*", "quay.io/a", false),
        ("qu?y.*", "quay.io/a", true),
        ("*.azurecr.io", "prefix.azurecr.io/a", true),
        ("q*x.io", "quay.io/a", false),
        ("https://index.docker.io/v1/", "docker.io/library/nginx", true),
        ("docker.io", "docker.io/library/nginx", true),
        ("index.docker.io", "quay.io/a", false),
    ] {
        assert_eq!(!names(&keyring(&[key]), image).is_empty(), fits, "{key} for {image}");
    }
}

#[test]
fn the_more_specific_key_comes_first_and_all_count() {
    let ring = keyring(&["quay.io", "quay.io/team", "*.io"]);
    assert_eq!(names(&ring, "quay.io/team/web"), ["quay.io/team", "quay.io", "*.io"]);
}

#[test]
fn both_forms_and_packed_credentials_are_read() {
    let mut ring = Keyring::default();
    ring.add(br#"{"a.b": {"auth": "dXNlcjpwOnc="}}"#, ConfigForm::Legacy).unwrap();
    let found = &ring.lookup("a.b/c")[0];
    assert_eq!((found.username.as_str(), found.password.as_str()), ("user", "p:w"));
    assert_eq!(found.basic(), "dXNlcjpwOnc=");
    assert!(!format!("{found:?}").contains("p:w"), "a password is never printed");
    for bad in [&b"{"[..], br#"{"a": {"auth": "?"}}"#, br#"{"a": {"auth": "dXNlcg"}}"#] {
        assert!(ring.add(bad, ConfigForm::Legacy).is_err());
    }
}

#[test]
fn challenges_are_read() {
    let bearer = |realm: &str, service: &str, scope: &str| Challenge::Bearer {
        realm: realm.to_owned(),
        service: service.to_owned(),
        scope: scope.to_owned(),
    };
    for (header, wanted) in [
        (r#"Basic realm="x""#, vec![Challenge::Basic]),
        ("basic", vec![Challenge::Basic]),
        (
            r#"Bearer realm="https://a/t",service="r",scope="repository:a/b:pull,push""#,
            vec![bearer("https://a/t", "r", "repository:a/b:pull,push")],
        ),
        (
            r#"Negotiate, Basic realm="a\"b", Bearer realm=https://a , service = "r""#,
            vec![Challenge::Basic, bearer("https://a", "r", "")],
        ),
        ("Bearer", vec![]),
        ("", vec![]),
    ] {
        assert_eq!(Challenge::parse(header), wanted, "{header}");
    }
}
