//! The cluster's own certificate authority.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};

use crate::{write_private, write_public};

/// A CA lives for ten years; leaves for one, and are renewed well before.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const LEAF_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Clocks of machines that join may be behind.
const CLOCK_SKEW: Duration = Duration::from_secs(300);

/// What went wrong with keys and certificates.
#[derive(Debug)]
pub enum PkiError {
    /// A file could not be read or written.
    Io(PathBuf, std::io::Error),
    /// Key material that cannot be used, and why.
    Material(String),
}

impl std::error::Error for PkiError {}

impl fmt::Display for PkiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Material(why) => f.write_str(why),
        }
    }
}

impl From<rcgen::Error> for PkiError {
    fn from(error: rcgen::Error) -> Self {
        Self::Material(error.to_string())
    }
}

/// What a certificate may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// TLS servers (and, for node servers, clients of their own).
    Server,
    /// TLS clients.
    Client,
}

/// Who a certificate is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Common name: the user.
    pub name: String,
    /// Organizations: the groups.
    pub groups: Vec<String>,
    /// DNS names of a server.
    pub dns: Vec<String>,
    /// Addresses of a server.
    pub addresses: Vec<IpAddr>,
}

/// A certificate and its key, both PEM.
#[derive(Clone, Debug)]
pub struct Signed {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

/// The CA: its certificate, and the key to sign with.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
    token_key: KeyPair,
}

impl Authority {
    /// Reads the CA of a directory, or makes one there (`ca.crt`, `ca.key`, `sa.key`).
    ///
    /// # Errors
    /// When files cannot be read or written, or hold something else.
    pub fn load_or_create(dir: &Path) -> Result<Self, PkiError> {
        let path = dir.join("ca.key");
        if !path.exists() {
            let key = KeyPair::generate()?;
            let certificate = ca_params().self_signed(&key)?.pem();
            save(&dir.join("ca.crt"), &certificate, write_public)?;
            // The key last: where it stands, the certificate stands.
            save(&path, &key.serialize_pem(), write_private)?;
        }
        let certificate = read(&dir.join("ca.crt"))?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, KeyPair::from_pem(&read(&path)?)?)?;
        let path = dir.join("sa.key");
        if !path.exists() {
            save(&path, &KeyPair::generate()?.serialize_pem(), write_private)?;
        }
        let token_key = KeyPair::from_pem(&read(&path)?)?;
        Ok(Self { certificate, issuer, token_key })
    }

    /// The CA's certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The key that signs service account tokens (ECDSA P-256): private and public, PEM.
    pub fn token_keys(&self) -> (String, String) {
        (self.token_key.serialize_pem(), self.token_key.public_key_pem())
    }

    /// The public half of that key, as an uncompressed point.
    pub fn token_public_point(&self) -> &[u8] {
        self.token_key.public_key_raw()
    }

    /// A new key and a certificate for it.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate.
    pub fn issue(&self, identity: &Identity, usage: Usage) -> Result<Signed, PkiError> {
        let key = KeyPair::generate()?;
        let params = leaf_params(identity, usage, LEAF_LIFE)?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Signed { certificate, key: key.serialize_pem() })
    }

    /// The certificate of `dir/NAME.crt` with its key, made anew when it is missing, near its end,
    /// or for somebody else.
    ///
    /// # Errors
    /// As [`Authority::issue`], and those of the file system.
    pub fn issue_to(
        &self,
        dir: &Path,
        name: &str,
        identity: &Identity,
        usage: Usage,
    ) -> Result<Signed, PkiError> {
        let (crt, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
        if let (Ok(certificate), Ok(key)) = (read(&crt), read(&key))
            && still_good(&certificate, identity)
        {
            return Ok(Signed { certificate, key });
        }
        let signed = self.issue(identity, usage)?;
        save(&crt, &signed.certificate, write_public)?;
        save(&key, &signed.key, write_private)?;
        Ok(signed)
    }

    /// Signs a certificate signing request, PEM in and out. Subject and names are the request's.
    ///
    /// # Errors
    /// When the request does not parse or asks for what we do not sign.
    pub fn sign_request(
        &self,
        request: &str,
        usage: Usage,
        life: Option<Duration>,
    ) -> Result<String, PkiError> {
        let mut parsed = CertificateSigningRequestParams::from_pem(request)?;
        set_life(&mut parsed.params, life.unwrap_or(LEAF_LIFE).min(LEAF_LIFE));
        set_usage(&mut parsed.params, usage);
        Ok(parsed.signed_by(&self.issuer)?.pem())
    }
}

/// A new key and a request to sign a certificate for it, both PEM: (key, request).
///
/// # Errors
/// When a name cannot stand in a certificate.
pub fn new_request(identity: &Identity) -> Result<(String, String), PkiError> {
    let key = KeyPair::generate()?;
    let params = named_params(identity)?;
    let request = params.serialize_request(&key)?.pem()?;
    Ok((key.serialize_pem(), request))
}

fn read(path: &Path) -> Result<String, PkiError> {
    std::fs::read_to_string(path).map_err(|error| PkiError::Io(path.to_owned(), error))
}

fn save(
    path: &Path,
    text: &str,
    write: fn(&Path, &[u8]) -> std::io::Result<()>,
) -> Result<(), PkiError> {
    write(path, text.as_bytes()).map_err(|error| PkiError::Io(path.to_owned(), error))
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "kubernetes");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
    ];
    set_life(&mut params, CA_LIFE);
    params
}

fn named_params(identity: &Identity) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(identity.dns.clone())?;
    params.subject_alt_names.extend(identity.addresses.iter().map(|ip| SanType::IpAddress(*ip)));
    params.distinguished_name = DistinguishedName::new();
    for group in &identity.groups {
        params.distinguished_name.push(DnType::OrganizationName, group.as_str());
    }
    params.distinguished_name.push(DnType::CommonName, identity.name.as_str());
    Ok(params)
}

fn leaf_params(
    identity: &Identity,
    usage: Usage,
    life: Duration,
) -> Result<CertificateParams, PkiError> {
    let mut params = named_params(identity)?;
    set_life(&mut params, life);
    set_usage(&mut params, usage);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn set_usage(params: &mut CertificateParams, usage: Usage) {
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match usage {
        Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
        Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
    }];
}

fn set_life(params: &mut CertificateParams, life: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + life).into();
}

/// Whether a certificate (PEM) has a third of its life left.
pub fn is_fresh(certificate: &str) -> bool {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()) else {
        return false;
    };
    let Ok(parsed) = pem.parse_x509() else { return false };
    let left = parsed.validity().time_to_expiration().map(|left| left.whole_seconds());
    left.is_some_and(|left| left > LEAF_LIFE.as_secs() as i64 / 3)
}

/// Whether a certificate is for `identity` and has a third of its life left.
fn still_good(certificate: &str, identity: &Identity) -> bool {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()) else {
        return false;
    };
    let Ok(parsed) = pem.parse_x509() else { return false };
    let common = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    let names = parsed.subject_alternative_name().ok().flatten();
    let mut addresses = Vec::new();
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        if let x509_parser::extensions::GeneralName::IPAddress(bytes) = name {
            addresses.push(bytes.to_vec());
        }
    }
    let wanted = identity.addresses.iter().map(|address| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    });
    is_fresh(certificate)
        && common == Some(&identity.name)
        && wanted.into_iter().all(|address| addresses.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_is_kept_until_its_identity_changes() {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = Authority::load_or_create(dir.path()).expect("a CA");
        let identity = Identity {
            name: "kube-apiserver".into(),
            addresses: vec!["10.0.0.1".parse().expect("an address")],
            ..Identity::default()
        };
        let issue = |identity: &Identity| {
            authority.issue_to(dir.path(), "server", identity, Usage::Server).expect("issued")
        };
        let first = issue(&identity);
        assert_eq!(first.certificate, issue(&identity).certificate);
        let moved =
            Identity { addresses: vec!["10.0.0.2".parse().expect("an address")], ..identity };
        assert_ne!(first.certificate, issue(&moved).certificate);
        let again = Authority::load_or_create(dir.path()).expect("the same CA");
        assert_eq!(again.certificate(), authority.certificate());
    }

    #[test]
    fn a_request_is_signed_with_its_own_subject() {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = Authority::load_or_create(dir.path()).expect("a CA");
        let identity = Identity {
            name: "system:node:a".into(),
            groups: vec!["system:nodes".into()],
            ..Identity::default()
        };
        let (_, request) = new_request(&identity).expect("a request");
        let signed = authority.sign_request(&request, Usage::Client, None).expect("signed");
        let (_, pem) = x509_parser::pem::parse_x509_pem(signed.as_bytes()).expect("PEM");
        let (name, groups) = crate::tls::subject(&pem.contents).expect("a subject");
        assert_eq!(
            (name.as_str(), &groups[..]),
            ("system:node:a", &["system:nodes".to_owned()][..])
        );
        assert!(authority.sign_request("nonsense", Usage::Client, None).is_err());
    }
}
