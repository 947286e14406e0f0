//! Meeting a cluster for the first time: the server sends its CA along, and a hash in the join
//! token says whether that is the right one. Nothing is sent before it is known to be.

use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};

use crate::authority::PkiError;

/// The hash by which a CA is known in join tokens: SHA-256 of its DER form, in hex.
///
/// # Errors
/// When the text holds no certificate.
pub fn ca_hash(ca: &str) -> Result<String, PkiError> {
    let bad = || PkiError::Material("no certificate in the CA's PEM".to_owned());
    let (_, pem) = x509_parser::pem::parse_x509_pem(ca.as_bytes()).map_err(|_| bad())?;
    Ok(hash(&pem.contents))
}

fn hash(der: &[u8]) -> String {
    Sha256::digest(der).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Learns the CA of a server while a handshake checks it against a hash.
#[derive(Debug)]
struct Pinned {
    wanted: String,
    ca: Arc<OnceLock<String>>,
}

impl Pinned {
    fn verifier(&self, ca: &CertificateDer<'_>) -> Result<Arc<WebPkiServerVerifier>, Error> {
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::new(default_provider()))
            .build()
            .map_err(|error| Error::General(error.to_string()))
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ca = chain.last().filter(|ca| hash(ca) == self.wanted);
        let ca = ca.ok_or_else(|| {
            Error::General("the server's CA is not the one that the join token names".to_owned())
        })?;
        let verified = self.verifier(ca)?.verify_server_cert(leaf, &[], name, ocsp, now)?;
        self.ca.get_or_init(|| pem(ca));
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// A client that accepts only the server whose CA has this hash; the cell holds the CA's PEM once
/// a handshake has succeeded.
///
/// # Errors
/// When TLS cannot be set up.
pub fn pinned_config(hash: &str) -> Result<(ClientConfig, Arc<OnceLock<String>>), PkiError> {
    let ca = Arc::new(OnceLock::new());
    let verifier = Arc::new(Pinned { wanted: hash.to_ascii_lowercase(), ca: ca.clone() });
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| PkiError::Material(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok((config, ca))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, Identity, Usage, server_config};
    use rustls::{ClientConnection, ServerConnection};

    /// A handshake in memory; the CA that the client learned.
    fn handshake(hash: &str, authority: &Authority) -> Result<Option<String>, Error> {
        let identity = Identity { dns: vec!["localhost".into()], ..Identity::default() };
        let mut signed = authority.issue(&identity, Usage::Server).expect("issued");
        signed.certificate.push_str(authority.certificate());
        let server = server_config(&signed, crate::Clients::MayShow(authority.certificate()))
            .expect("a server");
        let mut server = ServerConnection::new(server).expect("a connection");
        let (client, ca) = pinned_config(hash).expect("a client");
        let name = ServerName::try_from("localhost").expect("a name");
        let mut client = ClientConnection::new(Arc::new(client), name).expect("a connection");
        while client.is_handshaking() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).expect("to memory");
            server.read_tls(&mut bytes.as_slice()).expect("from memory");
            server.process_new_packets()?;
            let mut bytes = Vec::new();
            server.write_tls(&mut bytes).expect("to memory");
            client.read_tls(&mut bytes.as_slice()).expect("from memory");
            client.process_new_packets()?;
        }
        Ok(ca.get().cloned())
    }

    #[test]
    fn only_the_ca_that_the_token_names_is_believed() {
        let (here, there) = (tempfile::tempdir(), tempfile::tempdir());
        let (here, there) = (here.expect("a folder"), there.expect("a folder"));
        let ours = Authority::load_or_create(here.path()).expect("a CA");
        let theirs = Authority::load_or_create(there.path()).expect("a CA");
        let hash = ca_hash(ours.certificate()).expect("a certificate");
        let learned = handshake(&hash, &ours).expect("a handshake").expect("a CA");
        assert_eq!(ca_hash(&learned).expect("a certificate"), hash);
        assert!(handshake(&hash, &theirs).is_err(), "another CA");
    }
}
