//! Service account tokens: JWTs signed with the cluster's ECDSA P-256 key (KEP-1205).

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use knarr_pki::{Authority, PkiError};
use knarr_registry::Claims;
use serde_json::{Value, json};

/// Signs and checks tokens.
pub(crate) struct Tokens {
    issuer: String,
    signing: EncodingKey,
    checking: DecodingKey,
    key: Value,
}

impl Tokens {
    pub(crate) fn new(issuer: &str, authority: &Authority) -> Result<Self, PkiError> {
        let (private, public) = authority.token_keys();
        let material = |error: jsonwebtoken::errors::Error| PkiError::Material(error.to_string());
        let signing = EncodingKey::from_ec_pem(private.as_bytes()).map_err(material)?;
        let checking = DecodingKey::from_ec_pem(public.as_bytes()).map_err(material)?;
        let key = public_key(authority.token_public_point());
        Ok(Self { issuer: issuer.to_owned(), signing, checking, key })
    }

    /// A token for `claims`, good for `seconds`.
    pub(crate) fn sign(&self, claims: &Claims, audiences: &[String], seconds: i64) -> String {
        let now = crate::server::now().as_second();
        let reference = |bound: &Option<(String, String)>| {
            bound.as_ref().map(|(name, uid)| json!({"name": name, "uid": uid}))
        };
        let mut private = json!({"namespace": claims.namespace,
            "serviceaccount": {"name": claims.name, "uid": claims.uid}});
        for (key, bound) in [("pod", &claims.pod), ("node", &claims.node)] {
            if let Some(reference) = reference(bound) {
                private[key] = reference;
            }
        }
        let own = [self.issuer.clone()];
        let audiences = if audiences.is_empty() { &own[..] } else { audiences };
        let body = json!({
            "iss": self.issuer, "aud": audiences, "jti": claims.id,
            "sub": format!("system:serviceaccount:{}:{}", claims.namespace, claims.name),
            "iat": now, "nbf": now, "exp": now + seconds, "kubernetes.io": private,
        });
        let mut header = Header::new(Algorithm::ES256);
        header.kid = self.key["kid"].as_str().map(str::to_owned);
        jsonwebtoken::encode(&header, &body, &self.signing).expect("a P-256 key signs")
    }

    /// The claims of a token that is ours, alive, and meant for one of `audiences` (empty: us).
    pub(crate) fn verify(&self, token: &str, audiences: &[String]) -> Option<Claims> {
        if token.split('.').count() != 3 {
            return None;
        }
        let own = [self.issuer.clone()];
        let mut rules = Validation::new(Algorithm::ES256);
        rules.set_audience(if audiences.is_empty() { &own } else { audiences });
        rules.set_issuer(&[&self.issuer]);
        rules.validate_nbf = true;
        let body = jsonwebtoken::decode::<Value>(token, &self.checking, &rules).ok()?.claims;
        let private = body.get("kubernetes.io")?;
        let word = |pointer: &str| Some(private.pointer(pointer)?.as_str()?.to_owned());
        let bound = |what: &str| word(&format!("/{what}/name")).zip(word(&format!("/{what}/uid")));
        Some(Claims {
            namespace: word("/namespace")?,
            name: word("/serviceaccount/name")?,
            uid: word("/serviceaccount/uid")?,
            pod: bound("pod"),
            node: bound("node"),
            id: body.get("jti").and_then(Value::as_str).unwrap_or_default().to_owned(),
        })
    }

    /// OpenID discovery, for whoever checks our tokens elsewhere.
    pub(crate) fn discovery(&self) -> Value {
        json!({
            "issuer": self.issuer, "jwks_uri": format!("{}/openid/v1/jwks", self.issuer),
            "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// The public key, as a JSON Web Key Set.
    pub(crate) fn keys(&self) -> Value {
        json!({"keys": [self.key]})
    }
}

/// An uncompressed point (0x04, x, y) as a JSON Web Key.
fn public_key(point: &[u8]) -> Value {
    use base64::Engine;
    let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let (x, y) = point.get(1..).unwrap_or_default().split_at(point.len().saturating_sub(1) / 2);
    let kid = encode(&x[..x.len().min(16)]);
    json!({"use": "sig", "kty": "EC", "kid": kid, "crv": "P-256", "alg": "ES256",
        "x": encode(x), "y": encode(y)})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_living_tokens_for_the_right_audience_pass() {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = Authority::load_or_create(dir.path()).expect("a CA");
        let tokens = Tokens::new("https://a", &authority).expect("keys");
        let claims = Claims {
            namespace: "ns".into(),
            name: "sa".into(),
            uid: "u".into(),
            pod: Some(("p".into(), "v".into())),
            id: "1".into(),
            ..Claims::default()
        };
        let token = tokens.sign(&claims, &[], 600);
        assert_eq!(tokens.verify(&token, &[]), Some(claims.clone()));
        assert_eq!(tokens.verify(&token, &["other".into()]), None);
        assert_eq!(tokens.verify(&tokens.sign(&claims, &[], -600), &[]), None);
        assert_eq!(tokens.verify(&token.replace('.', ".x"), &[]), None);
        let other_cluster = Tokens::new("https://b", &authority).expect("keys");
        assert_eq!(
            other_cluster.verify(&tokens.sign(&claims, &["https://b".into()], 600), &[]),
            None
        );
        let elsewhere = tempfile::tempdir().expect("a directory");
        let stranger = Authority::load_or_create(elsewhere.path()).expect("a CA");
        let stranger = Tokens::new("https://a", &stranger).expect("keys");
        assert_eq!(tokens.verify(&stranger.sign(&claims, &[], 600), &[]), None);
    }
}
