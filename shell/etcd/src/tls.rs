//! Certificates that follow their files: who connects after a rotation gets the new one.
//!
//! The files' stamps are compared at each handshake, so nothing polls. A rotation that cannot be
//! used (half written, say) is told, and the last good one stays.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use knarr_pki::{Clients, PkiError, Signed};
use rustls::ServerConfig;

/// Where certificates lie.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The server's certificate with those between it and its authority, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Authorities of clients, PEM: with it, every client needs a certificate of theirs.
    pub client_ca: Option<PathBuf>,
}

/// Why TLS cannot be had.
#[derive(Debug)]
pub enum TlsError {
    /// A file cannot be read.
    Read(PathBuf, io::Error),
    /// What is in them is of no use.
    Pki(PkiError),
}

/// The settings as the files have them.
#[derive(Debug)]
pub struct TlsKeeper {
    files: TlsFiles,
    current: Mutex<(Stamps, Arc<ServerConfig>)>,
}

/// What changes when a file does: device, inode, size, and time of change.
type Stamps = Vec<(u64, u64, u64, i64, i64)>;

impl TlsKeeper {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn open(files: TlsFiles) -> Result<Self, TlsError> {
        let current = Mutex::new((files.stamps()?, files.load()?));
        Ok(Self { files, current })
    }

    /// The settings for a new connection.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match self.files.stamps() {
            Ok(stamps) if stamps == current.0 => {}
            Ok(stamps) => match self.files.load() {
                Ok(config) => {
                    let file = self.files.certificate.display();
                    tracing::info!(%file, "certificates taken up");
                    *current = (stamps, config);
                }
                Err(error) => tracing::warn!(%error, "the new certificates are not usable"),
            },
            Err(error) => tracing::warn!(%error, "the certificates cannot be looked at"),
        }
        current.1.clone()
    }
}

impl TlsFiles {
    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.certificate, &self.key].into_iter().chain(&self.client_ca)
    }

    fn stamps(&self) -> Result<Stamps, TlsError> {
        let stamp = |path: &PathBuf| {
            let meta = fs::metadata(path).map_err(|error| TlsError::Read(path.clone(), error))?;
            Ok((meta.dev(), meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec()))
        };
        self.paths().map(stamp).collect()
    }

    fn load(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let read = |path: &PathBuf| {
            fs::read_to_string(path).map_err(|error| TlsError::Read(path.clone(), error))
        };
        let signed = Signed { certificate: read(&self.certificate)?, key: read(&self.key)? };
        let ca = self.client_ca.as_ref().map(read).transpose()?;
        let clients = ca.as_deref().map_or(Clients::Anyone, Clients::MustShow);
        knarr_pki::server_config(&signed, clients).map_err(TlsError::Pki)
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Pki(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for TlsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read(_, error) => Some(error),
            Self::Pki(error) => Some(error),
        }
    }
}
