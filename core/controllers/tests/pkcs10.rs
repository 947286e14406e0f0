//! The certificate request reader: what it reads, and that nothing makes it panic.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use knarr_controllers::pkcs10::Request;
use proptest::prelude::*;

const SERVING: &str = "\
-----BEGIN CERTIFICATE REQUEST-----
MIIBETCBuAIBADAwMRUwEwYDVQQKDAxzeXN0ZW06bm9kZXMxFzAVBgNVBAMMDnN5
c3RlbTpub2RlOm4xMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEkMwgn9S3WjcB
GJDVywctZimGkyJ10JFJhaaeR1wyybLmTl6ZtWxmbF5z3iRbCnYwNV/XhDe6rUFt
GdmFw6s07qAmMCQGCSqGSIb3DQEJDjEXMBUwEwYDVR0RBAwwCoICbjGHBAoAAAEw
CgYIKoZIzj0EAwIDSAAwRQIhAPihf5vS9VnAowVQ3hCwHfs2NCiA8qPFQtQixXK4
rZtMAiBjAyO0MGh7IZHT/FBNCk7H/FnUnENzAmqK0bU5tN8IAw==
-----END CERTIFICATE REQUEST-----
";

fn der() -> Vec<u8> {
    use base64::Engine as _;
    let body: String = SERVING.lines().filter(|line| !line.starts_with('-')).collect();
    base64::engine::general_purpose::STANDARD.decode(body).unwrap()
}

#[test]
fn subject_and_names_are_read() {
    let request = Request::from_pem(SERVING).unwrap();
    assert_eq!(request.common_name, "system:node:n1");
    assert_eq!(request.organizations, ["system:nodes"]);
    assert_eq!((request.dns_names, request.addresses, request.other_names), (1, 1, 0));
    assert_eq!(Request::from_pem("nothing"), None);
}

#[test]
fn no_part_of_a_request_is_a_request() {
    let der = der();
    for end in 0..der.len() {
        assert_eq!(Request::from_der(&der[..end]), None, "{end}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Request::from_der(&bytes);
    }

    #[test]
    fn any_change_is_survived(at in 0usize..200, byte in any::<u8>()) {
        let mut der = der();
        let at = at % der.len();
        der[at] = byte;
        let _ = Request::from_der(&der);
    }
}
