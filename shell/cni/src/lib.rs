//! Connects Pods by CNI plugins: reads configurations, runs the programs, keeps what was done.
//!
//! What is said and understood is `core/cni`; here are files and processes. A connection is
//! written down before its first plugin runs, so that it can be undone whoever dies meanwhile, and
//! with the configuration it was made by, so that it is undone by the same.

mod program;
mod records;

use std::fmt;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use knarr_cni_protocol::Wanted;
use knarr_cni_protocol::{Attachment, List, Plugin, Verb, addresses, first, result};

use records::Records;

/// How long upstream waits for a call of the runtime.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// The longest configuration that is read, in bytes.
const MAX_CONFIG: u64 = 1 << 20;

/// Where things lie.
#[derive(Clone, Debug)]
pub struct Config {
    /// Configurations; the first counts.
    pub conf_dir: PathBuf,
    /// Plugins, looked for in this order; what is undone also uses those it was made by.
    pub bin_dirs: Vec<PathBuf>,
    /// What was connected.
    pub state_dir: PathBuf,
    /// How long a plugin may take.
    pub patience: Duration,
}

/// Why a Pod is not connected, or is still.
#[derive(Debug)]
pub enum CniError {
    /// A configuration is of no use.
    Config(PathBuf, Box<dyn std::error::Error + Send + Sync>),
    /// A plugin failed: how it is called, at what, and what it says.
    Plugin(String, Verb, String),
    /// The network gave the Pod no address.
    NoAddress(String),
    /// What is being done cannot be written down or read.
    Record(PathBuf, io::Error),
}

impl std::error::Error for CniError {}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(path, why) => {
                write!(f, "failed to load CNI config list file {}: {why}", path.display())
            }
            Self::Plugin(which, verb, why) => {
                write!(f, "plugin {which} failed ({}): {why}", verb.word())
            }
            Self::NoAddress(network) => {
                write!(f, "the network {network:?} gave the Pod no address")
            }
            Self::Record(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

/// The Pods that plugins connected.
#[derive(Debug)]
pub struct Cni {
    config: Config,
    records: Mutex<Records>,
}

impl Cni {
    /// Reads what is connected.
    ///
    /// # Errors
    /// [`CniError::Record`].
    pub fn open(config: Config) -> Result<Self, CniError> {
        let records = Mutex::new(Records::open(&config.state_dir)?);
        Ok(Self { config, records })
    }

    /// The configured network, as it is now; none when there is no configuration.
    ///
    /// # Errors
    /// [`CniError::Config`]: the first file is of no use.
    pub fn network(&self) -> Result<Option<List>, CniError> {
        let dir = &self.config.conf_dir;
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(CniError::Config(dir.clone(), error.into())),
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let Some(file) = first(names.collect()) else { return Ok(None) };
        let path = dir.join(&file);
        let content = match read(&path) {
            Ok(content) => content,
            Err(error) => return Err(CniError::Config(path, error.into())),
        };
        let list = List::decode(&file, &content);
        list.map(Some).map_err(|refused| CniError::Config(path, refused.into()))
    }

    /// Connects a Pod; its addresses. After an error [`Self::disconnect`] is due.
    ///
    /// # Errors
    /// The first plugin that failed.
    pub async fn connect(&self, list: List, wanted: Wanted) -> Result<Vec<IpAddr>, CniError> {
        let netns_inode = inode(&wanted.netns);
        let bin_dirs = self.bin_dirs().collect();
        let mut doing = Attachment { list, wanted, bin_dirs, netns_inode, result: None };
        self.records().put(&doing)?;
        for plugin in doing.list.plugins.clone() {
            let said = self.call(&doing, &plugin, Verb::Add).await?;
            let result = result(&doing.list.version, &said).map_err(|refused| {
                CniError::Plugin(plugin.description(), Verb::Add, refused.to_string())
            })?;
            doing.result = Some(result);
        }
        let given = given(&doing);
        if given.is_empty() {
            return Err(CniError::NoAddress(doing.list.name));
        }
        self.records().put(&doing)?;
        Ok(given)
    }

    /// Undoes a connection, however far it came; nothing when there is none. Safe to repeat.
    ///
    /// # Errors
    /// The first plugin that failed; the connection is still known then.
    pub async fn disconnect(&self, sandbox: &str) -> Result<(), CniError> {
        let Some(mut done) = self.records().of(sandbox).cloned() else { return Ok(()) };
        if inode(&done.wanted.netns) != done.netns_inode {
            done.wanted.netns.clear();
        }
        for dir in self.bin_dirs() {
            if !done.bin_dirs.contains(&dir) {
                done.bin_dirs.push(dir);
            }
        }
        for plugin in done.list.plugins.iter().rev() {
            self.call(&done, plugin, Verb::Del).await?;
        }
        self.records().remove(sandbox)
    }

    async fn call(
        &self,
        doing: &Attachment,
        plugin: &Plugin,
        verb: Verb,
    ) -> Result<Vec<u8>, CniError> {
        let failed = |why| CniError::Plugin(plugin.description(), verb, why);
        let program = find(&plugin.kind, &doing.bin_dirs).map_err(failed)?;
        let environment = doing.wanted.environment(verb, &doing.bin_dirs);
        let input = doing.input(plugin, verb);
        let said = program::run(&program, environment, &input, self.config.patience).await;
        said.map_err(failed)
    }

    fn bin_dirs(&self) -> impl Iterator<Item = String> {
        self.config.bin_dirs.iter().map(|dir| dir.display().to_string())
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The addresses that a sandbox has by a plugin.
    pub fn addresses(&self, sandbox: &str) -> Vec<IpAddr> {
        self.records().of(sandbox).map(given).unwrap_or_default()
    }

    /// The sandboxes that are connected, or were about to be.
    pub fn sandboxes(&self) -> Vec<String> {
        self.records().all().map(|known| known.wanted.sandbox.clone()).collect()
    }

    /// Those whose connecting never came to its end.
    pub fn unfinished(&self) -> Vec<String> {
        let records = self.records();
        let unfinished = records.all().filter(|known| known.result.is_none());
        unfinished.map(|known| known.wanted.sandbox.clone()).collect()
    }
}

fn find(kind: &str, dirs: &[String]) -> Result<PathBuf, String> {
    let mut paths = dirs.iter().map(|dir| Path::new(dir).join(kind));
    let missing = || format!("failed to find plugin {kind:?} in path [{}]", dirs.join(" "));
    paths.find(|path| path.is_file()).ok_or_else(missing)
}

fn given(known: &Attachment) -> Vec<IpAddr> {
    let result = known.result.as_ref();
    result.map(|result| addresses(result, &known.wanted.interface)).unwrap_or_default()
}

/// Which namespace a path names; 0 for none.
fn inode(netns: &str) -> u64 {
    fs::metadata(netns).map_or(0, |meta| meta.ino())
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    use io::Read;
    let mut content = Vec::new();
    fs::File::open(path)?.take(MAX_CONFIG).read_to_end(&mut content)?;
    Ok(content)
}
