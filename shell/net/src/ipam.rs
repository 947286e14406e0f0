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
    /// One of each family at most, with the place of the address that was given last.
    subnets: Vec<(Subnet, u32)>,
    used: BTreeMap<IpAddr, String>,
}

impl Pool {
    /// Reads what is in use.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(dir: &Path, subnets: &[Subnet]) -> Result<Self, PoolError> {
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
        let subnets = subnets.iter().map(|subnet| (*subnet, 1)).collect();
        Ok(Self { dir: dir.to_owned(), subnets, used })
    }

    /// The addresses that `owner` has, or the next free one of each subnet. The first two and the
    /// last of a subnet are not given out.
    ///
    /// # Errors
    /// [`PoolError`]; what was given out is taken back.
    pub fn allocate(&mut self, owner: &str) -> Result<Vec<IpAddr>, PoolError> {
        for at in 0..self.subnets.len() {
            if let Err(error) = self.allocate_of(at, owner) {
                self.release(owner)?;
                return Err(error);
            }
        }
        Ok(self.of(owner))
    }

    fn allocate_of(&mut self, at: usize, owner: &str) -> Result<(), PoolError> {
        let (subnet, last) = self.subnets[at];
        if self.of(owner).iter().any(|ip| ip.is_ipv4() == subnet.base.is_ipv4()) {
            return Ok(());
        }
        let size = subnet.size();
        for step in 1..size {
            let n = (last + step) % size;
            let address = subnet.nth(n);
            if n < 2 || n == size - 1 || self.used.contains_key(&address) {
                continue;
            }
            let path = self.dir.join(address.to_string());
            let mut file =
                fs::File::create_new(&path).map_err(|error| PoolError::Io(path.clone(), error))?;
            file.write_all(owner.as_bytes()).map_err(|error| PoolError::Io(path, error))?;
            self.used.insert(address, owner.to_owned());
            self.subnets[at].1 = n;
            return Ok(());
        }
        Err(PoolError::Exhausted(subnet))
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

    /// The addresses that `owner` has, in the order of the subnets.
    pub fn of(&self, owner: &str) -> Vec<IpAddr> {
        let own = self.used.iter().filter(|(_, o)| *o == owner).map(|(address, _)| *address);
        let mut own: Vec<IpAddr> = own.collect();
        own.sort_by_key(|ip| {
            self.subnets.iter().position(|(subnet, _)| subnet.base.is_ipv4() == ip.is_ipv4())
        });
        own
    }

    /// Everybody who has an address.
    pub fn owners(&self) -> impl Iterator<Item = &str> {
        self.used.values().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(pool: &mut Pool, owner: &str) -> String {
        let given = pool.allocate(owner).expect("room");
        given.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn addresses_are_given_once_and_survive_a_restart() {
        let dir = tempfile::tempdir().expect("a folder");
        let subnet: Subnet = "10.1.2.0/29".parse().expect("a subnet");
        let mut pool = Pool::open(dir.path(), &[subnet]).expect("a pool");
        let last: Vec<String> =
            ["a", "b", "c", "d", "e"].iter().map(|owner| given(&mut pool, owner)).collect();
        assert_eq!(last, ["10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6"]);
        assert!(matches!(pool.allocate("f"), Err(PoolError::Exhausted(_))));
        let mut again = Pool::open(dir.path(), &[subnet]).expect("the same pool");
        assert_eq!(given(&mut again, "c"), "10.1.2.4");
        again.release("c").expect("released");
        assert_eq!(given(&mut again, "f"), "10.1.2.4");
    }

    #[test]
    fn each_owner_has_an_address_of_each_family_or_none() {
        let dir = tempfile::tempdir().expect("a folder");
        let subnets = ["fd00:1::/64", "10.1.2.0/30"].map(|text| text.parse().expect("a subnet"));
        let mut pool = Pool::open(dir.path(), &subnets).expect("a pool");
        assert_eq!(given(&mut pool, "a"), "fd00:1::2 10.1.2.2");
        assert!(matches!(pool.allocate("b"), Err(PoolError::Exhausted(_))));
        assert_eq!(pool.of("b"), [] as [IpAddr; 0], "half an allocation stayed");
        let mut again = Pool::open(dir.path(), &subnets).expect("the same pool");
        assert_eq!(given(&mut again, "a"), "fd00:1::2 10.1.2.2");
        again.release("a").expect("released");
        assert_eq!(given(&mut again, "b"), "fd00:1::2 10.1.2.2");
    }

    #[test]
    fn ranges_are_read_strictly() {
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/8", "::/129", "10.0.0.0/"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }
}
