//! Who a process runs as: names looked up in the contents of /etc/passwd and /etc/group.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::cri::SupplementalGroupsPolicy;
use crate::spec::UserSpec;

/// The numbers behind a [`UserSpec`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups, sorted; the primary one is among them.
    pub groups: Vec<u32>,
    /// Home folder, `/` when unknown.
    pub home: String,
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let (uid, gid) = (fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
        Some(Account { name: fields[0], uid, gid, home: fields.get(5).copied().unwrap_or("") })
    })
}

/// (name, gid, members) of each line.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        Some((name, gid.parse().ok()?, fields.next().unwrap_or("")))
    })
}

/// Looks a user up.
///
/// # Errors
/// A name that the files do not have, as a text for the user.
pub fn resolve(spec: &UserSpec, passwd: &str, group: &str) -> Result<Identity, String> {
    let (user, wanted_group) = match spec.user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec.user.as_str(), None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    let account = accounts(passwd).find(|a| a.name == user || number == Some(a.uid));
    let uid = match (&account, number) {
        (_, Some(uid)) => uid,
        (Some(account), None) => account.uid,
        (None, None) => {
            return Err(format!("unable to find user {user}: no matching entries in passwd file"));
        }
    };
    let gid = match wanted_group {
        None => account.as_ref().map_or(0, |account| account.gid),
        Some(name) => group_number(name, group)?,
    };
    let mut all: BTreeSet<u32> = spec.additional_gids.iter().copied().chain([gid]).collect();
    if let (SupplementalGroupsPolicy::Merge, Some(account)) = (spec.groups, &account) {
        let member = |members: &str| members.split(',').any(|member| member == account.name);
        all.extend(groups(group).filter(|(_, _, m)| member(m)).map(|(_, gid, _)| gid));
    }
    let home = account.map(|account| account.home).filter(|home| !home.is_empty());
    let groups = all.into_iter().collect();
    Ok(Identity { uid, gid, groups, home: home.unwrap_or("/").to_string() })
}

fn group_number(name: &str, group: &str) -> Result<u32, String> {
    name.parse()
        .ok()
        .or_else(|| groups(group).find(|(known, ..)| *known == name).map(|(_, gid, _)| gid))
        .ok_or_else(|| format!("unable to find group {name}: no matching entries in group file"))
}
