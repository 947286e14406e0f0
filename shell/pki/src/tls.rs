//! TLS settings made of our certificates.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::authority::{PkiError, Signed};

fn material(error: impl std::fmt::Display) -> PkiError {
    PkiError::Material(error.to_string())
}

fn roots(ca: &str) -> Result<RootCertStore, PkiError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(certificate.map_err(material)?).map_err(material)?;
    }
    Ok(roots)
}

type Chain = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn chain(signed: &Signed) -> Result<Chain, PkiError> {
    let certificates = CertificateDer::pem_slice_iter(signed.certificate.as_bytes());
    let certificates = certificates.collect::<Result<_, _>>().map_err(material)?;
    let key = PrivateKeyDer::from_pem_slice(signed.key.as_bytes()).map_err(material)?;
    Ok((certificates, key))
}

/// Whose connections a server takes; authorities are PEM.
#[derive(Clone, Copy, Debug)]
pub enum Clients<'a> {
    /// Everybody's; certificates are not asked for.
    Anyone,
    /// Everybody's; a certificate, where one is shown, must be of this authority.
    MayShow(&'a str),
    /// Only those with a certificate of this authority.
    MustShow(&'a str),
}

impl Clients<'_> {
    fn verifier(
        self,
        provider: Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ClientCertVerifier>, PkiError> {
        let builder = |ca| {
            let roots = Arc::new(roots(ca)?);
            Ok::<_, PkiError>(WebPkiClientVerifier::builder_with_provider(roots, provider))
        };
        match self {
            Self::Anyone => return Ok(WebPkiClientVerifier::no_client_auth()),
            Self::MayShow(ca) => builder(ca)?.allow_unauthenticated().build(),
            Self::MustShow(ca) => builder(ca)?.build(),
        }
        .map_err(material)
    }
}

/// A server with a certificate, for these clients.
///
/// # Errors
/// When key material cannot be used.
pub fn server_config(signed: &Signed, clients: Clients<'_>) -> Result<Arc<ServerConfig>, PkiError> {
    let provider = Arc::new(default_provider());
    let verifier = clients.verifier(provider.clone())?;
    let (certificates, key) = chain(signed)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(material)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates, key)
        .map_err(material)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A client that trusts our CA only, with its own certificate where it has one.
///
/// # Errors
/// When key material cannot be used.
pub fn client_config(ca: &str, client: Option<&Signed>) -> Result<Arc<ClientConfig>, PkiError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(material)?
        .with_root_certificates(roots(ca)?);
    let config = match client {
        Some(signed) => {
            let (certificates, key) = chain(signed)?;
            builder.with_client_auth_cert(certificates, key).map_err(material)?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// Common name and organizations of a verified peer.
pub fn peer_identity(certificates: Option<&[CertificateDer<'_>]>) -> Option<(String, Vec<String>)> {
    subject(certificates?.first()?)
}

/// Common name and organizations of a certificate, DER.
pub(crate) fn subject(der: &[u8]) -> Option<(String, Vec<String>)> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject.iter_organization().filter_map(|group| group.as_str().ok());
    Some((name, groups.map(str::to_owned).collect()))
}
