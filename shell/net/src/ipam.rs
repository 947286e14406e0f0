//! Host-local addresses: one file per address in use, its content is the owner.
//!
//! The files are the state: they survive the agent, and whoever looks can see who has what.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Why there is no address.
#[derive(Debug)]
pub enum PoolError {
    /// All addresses of the subnet are in use.
    Exhausted(Subnet),
    /// The files cannot be read or written.
    Io(PathBuf, std::io::Error),
}

impl std::error::Error for PoolError {}

impl fmt::Display for PoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exhausted(subnet) => write!(f, "no free address in {subnet}"),
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

/// An address range, `10.0.0.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    base: IpAddr,
    prefix: u8,
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no address range such as 10.0.0.0/24");
        let (base, prefix) = text.split_once('/').ok_or_else(bad)?;
        let base: IpAddr = base.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        let bits = if base.is_ipv4() { 32 } else { 128 };
        if prefix > bits { Err(bad()) } else { Ok(Self { base, prefix }) }
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl Subnet {
    /// How many addresses may be given out, bounded.
    fn size(&self) -> u32 {
        let bits = if self.base.is_ipv4() { 32 } else { 128 } - self.prefix;
        1_u32.checked_shl(u32::from(bits.min(16))).unwrap_or(1 << 16)
    }

    fn nth(&self, n: u32) -> IpAddr {
        match self.base {
            IpAddr::V4(base) => Ipv4Addr::from(u32::from(base) + n).into(),
            IpAddr::V6(base) => Ipv6Addr::from(u128::from(base) + u128::from(n)).into(),
        }
    }
}

/// The addresses of one node.
#[derive(Debug)]
pub struct Pool {
    dir: PathBuf,
    subnet: Subnet,
    used: BTreeMap<IpAddr, String>,
    last: u32,
}

impl Pool {
    /// Reads what is in use.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(dir: &Path, subnet: Subnet) -> Result<Self, PoolError> {
        let io = |error| PoolError::Io(dir.to_owned(), error);
        fs::create_dir_all(dir).map_err(io)?;
        let mut used = BTreeMap::new();
        for entry in fs::read_dir(dir).map_err(io)? {
            let entry = entry.map_err(io)?;
            if let Ok(address) = entry.file_name().to_string_lossy().parse() {
                let owner = fs::read_to_string(entry.path()).unwrap_or_default();
                used.insert(address, owner);
            }
        }
        Ok(Self { dir: dir.to_owned(), subnet, used, last: 1 })
    }

    /// The address that `owner` has, or the next free one. The first two and the last of the
    /// subnet are not given out.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn allocate(&mut self, owner: &str) -> Result<IpAddr, PoolError> {
        if let Some(address) = self.of(owner) {
            return Ok(address);
        }
        let size = self.subnet.size();
        for step in 1..size {
            let n = (self.last + step) % size;
            let address = self.subnet.nth(n);
            if n < 2 || n == size - 1 || self.used.contains_key(&address) {
                continue;
            }
            let path = self.dir.join(address.to_string());
            let mut file =
                fs::File::create_new(&path).map_err(|error| PoolError::Io(path.clone(), error))?;
            file.write_all(owner.as_bytes()).map_err(|error| PoolError::Io(path, error))?;
            self.used.insert(address, owner.to_owned());
            self.last = n;
            return Ok(address);
        }
        Err(PoolError::Exhausted(self.subnet))
    }

    /// Gives back what `owner` has.
    ///
    /// # Errors
    /// When its file cannot be removed.
    pub fn release(&mut self, owner: &str) -> Result<(), PoolError> {
        let own = self.used.iter().filter(|(_, o)| *o == owner).map(|(address, _)| *address);
        for address in own.collect::<Vec<_>>() {
            let path = self.dir.join(address.to_string());
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(PoolError::Io(path, error));
                }
                _ => drop(self.used.remove(&address)),
            }
        }
        Ok(())
    }

    /// The address that `owner` has.
    pub fn of(&self, owner: &str) -> Option<IpAddr> {
        self.used.iter().find(|(_, o)| *o == owner).map(|(address, _)| *address)
    }

    /// Everybody who has an address.
    pub fn owners(&self) -> impl Iterator<Item = &str> {
        self.used.values().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_once_and_survive_a_restart() {
        let dir = tempfile::tempdir().expect("a folder");
        let subnet: Subnet = "10.1.2.0/29".parse().expect("a subnet");
        let mut pool = Pool::open(dir.path(), subnet).expect("a pool");
        let mut given: Vec<IpAddr> = Vec::new();
        for owner in ["a", "b", "c", "d", "e"] {
            given.push(pool.allocate(owner).expect("room"));
        }
        let last: Vec<String> = given.iter().map(ToString::to_string).collect();
        assert_eq!(last, ["10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6"]);
        assert!(matches!(pool.allocate("f"), Err(PoolError::Exhausted(_))));
        let mut again = Pool::open(dir.path(), subnet).expect("the same pool");
        assert_eq!(again.allocate("c").expect("kept").to_string(), "10.1.2.4");
        again.release("c").expect("released");
        assert_eq!(again.allocate("f").expect("free again").to_string(), "10.1.2.4");
    }

    #[test]
    fn ranges_are_read_strictly() {
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/8", "::/129", "10.0.0.0/"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }
}
