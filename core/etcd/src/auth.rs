//! Users, roles and permissions, with etcd's rules and error texts.
//!
//! They lie in the keyspace's settings under the names of etcd's buckets (`auth/authEnabled`,
//! `authUsers/NAME`, `authRoles/NAME`) and in etcd's encoding, so that a backup of either is one of
//! the other. Every change is judged here, on the settings as they are, and names their version: it
//! happens on exactly those settings or not at all.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use bytes::Bytes;
use knarr_mvcc::{Change, KeyRange, RangeEnd, Settings};
use prost::Message;

/// The user, and the role, that may do everything.
pub const ROOT: &str = "root";

const ENABLED: &str = "auth/authEnabled";
const REVISION: &str = "auth/authRevision";
const USERS: &str = "authUsers/";
const ROLES: &str = "authRoles/";

/// A user, as etcd encodes it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct User {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The bcrypt hash of its password; empty when it has none.
    #[prost(bytes = "bytes", tag = "2")]
    pub password: Bytes,
    /// The roles it has, sorted.
    #[prost(string, repeated, tag = "3")]
    pub roles: Vec<String>,
    /// How it may log in.
    #[prost(message, optional, tag = "4")]
    pub options: Option<UserOptions>,
}

/// How a user may log in.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct UserOptions {
    /// By certificate only.
    #[prost(bool, tag = "1")]
    pub no_password: bool,
}

/// A role, as etcd encodes it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Role {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// What it permits, sorted by key.
    #[prost(message, repeated, tag = "2")]
    pub permissions: Vec<Permission>,
}

/// A permission for a range of keys.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Permission {
    /// Which one.
    #[prost(enumeration = "Grade", tag = "1")]
    pub grade: i32,
    /// First key.
    #[prost(bytes = "bytes", tag = "2")]
    pub key: Bytes,
    /// Where the range ends, in etcd's way: empty is one key, a zero byte is no end.
    #[prost(bytes = "bytes", tag = "3")]
    pub range_end: Bytes,
}

/// What a permission is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Grade {
    /// Reading.
    Read = 0,
    /// Writing.
    Write = 1,
    /// Both.
    ReadWrite = 2,
}

/// What a request does with a range of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// It reads them.
    Read,
    /// It writes them.
    Write,
}

/// What a request needs: a right on a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Which right.
    pub right: Right,
    /// On which keys.
    pub range: KeyRange,
}

/// A change of users or roles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// From now on everybody has to say who they are.
    Enable,
    /// Everybody may do everything.
    Disable,
    /// A new user.
    UserAdd(User),
    /// A user goes.
    UserDelete(String),
    /// A user's new password, hashed.
    UserPassword(String, Bytes),
    /// A user gets a role.
    UserGrant(String, String),
    /// A user loses a role.
    UserRevoke(String, String),
    /// A new role.
    RoleAdd(String),
    /// A role goes, from all its users too.
    RoleDelete(String),
    /// A role permits more.
    RoleGrant(String, Option<Permission>),
    /// A role permits less: key and range end, as they were granted.
    RoleRevoke(String, Bytes, Bytes),
}

/// Users and roles as they stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Auth {
    settings: u64,
    enabled: bool,
    revision: u64,
    users: BTreeMap<String, User>,
    roles: BTreeMap<String, Role>,
}

/// Why something is refused; etcd's text is its `Display`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthError {
    /// Nobody can administrate.
    RootUserNotExist,
    /// The root user cannot administrate.
    RootRoleNotExist,
    /// There is such a user already.
    UserAlreadyExist,
    /// A user needs a name.
    UserEmpty,
    /// There is no such user.
    UserNotFound,
    /// There is such a role already.
    RoleAlreadyExist,
    /// There is no such role.
    RoleNotFound,
    /// A role needs a name.
    RoleEmpty,
    /// Name or password is wrong.
    AuthFailed,
    /// No permission was named.
    PermissionNotGiven,
    /// The user may not do this.
    PermissionDenied,
    /// The user does not have the role.
    RoleNotGranted,
    /// The role does not have the permission.
    PermissionNotGranted,
    /// Nobody has to log in.
    AuthNotEnabled,
    /// The token is unknown or too old.
    InvalidAuthToken,
    /// It would lock everybody out, or makes no sense.
    InvalidAuthMgmt,
}

impl Auth {
    /// Users and roles out of the settings. What cannot be decoded is left out: it permits nothing.
    pub fn read(settings: &Settings) -> Self {
        let users = decoded::<User>(settings, USERS).map(|user| (user.name.clone(), user));
        let roles = decoded::<Role>(settings, ROLES).map(|role| (role.name.clone(), role));
        let revision = settings.get(REVISION.as_bytes()).and_then(|b| b[..].try_into().ok());
        Self {
            settings: settings.version(),
            enabled: settings.get(ENABLED.as_bytes()).is_some_and(|flag| flag[..] == [1]),
            revision: revision.map_or(1, u64::from_be_bytes),
            users: users.collect(),
            roles: roles.collect(),
        }
    }

    /// The version of the settings it was read from.
    pub fn settings(&self) -> u64 {
        self.settings
    }

    /// Whether everybody has to say who they are.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// How often users and roles were changed, plus one.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// All users by name.
    pub fn users(&self) -> impl Iterator<Item = &User> {
        self.users.values()
    }

    /// All roles by name.
    pub fn roles(&self) -> impl Iterator<Item = &Role> {
        self.roles.values()
    }

    /// A user.
    ///
    /// # Errors
    /// [`AuthError::UserNotFound`].
    pub fn user(&self, name: &str) -> Result<&User, AuthError> {
        self.users.get(name).ok_or(AuthError::UserNotFound)
    }

    /// A role.
    ///
    /// # Errors
    /// [`AuthError::RoleNotFound`].
    pub fn role(&self, name: &str) -> Result<&Role, AuthError> {
        self.roles.get(name).ok_or(AuthError::RoleNotFound)
    }

    /// Whether a user has a role.
    pub fn has_role(&self, user: &str, role: &str) -> bool {
        self.users.get(user).is_some_and(|user| user.roles.iter().any(|name| name == role))
    }

    /// Judges whether somebody may administrate; `None` has not said who they are.
    ///
    /// # Errors
    /// [`AuthError::UserEmpty`], [`AuthError::PermissionDenied`].
    pub fn administrates(&self, user: Option<&str>) -> Result<(), AuthError> {
        if !self.enabled {
            return Ok(());
        }
        let user = user.ok_or(AuthError::UserEmpty)?;
        self.has_role(user, ROOT).then_some(()).ok_or(AuthError::PermissionDenied)
    }

    /// Judges whether somebody may do all of this; `None` has not said who they are.
    ///
    /// # Errors
    /// [`AuthError::UserEmpty`], [`AuthError::PermissionDenied`].
    pub fn permits<'a>(
        &self,
        user: Option<&str>,
        needs: impl IntoIterator<Item = &'a Need>,
    ) -> Result<(), AuthError> {
        if !self.enabled {
            return Ok(());
        }
        let name = user.ok_or(AuthError::UserEmpty)?;
        let user = self.users.get(name).ok_or(AuthError::PermissionDenied)?;
        let all = self.has_role(name, ROOT);
        let granted = needs.into_iter().all(|need| all || self.covers(user, need));
        granted.then_some(()).ok_or(AuthError::PermissionDenied)
    }

    /// Whether the permissions of all roles of a user together cover a range.
    fn covers(&self, user: &User, need: &Need) -> bool {
        let roles = user.roles.iter().filter_map(|name| self.roles.get(name));
        let mut ranges: Vec<KeyRange> = roles
            .flat_map(|role| &role.permissions)
            .filter(|permission| permission.grants(need.right))
            .map(|permission| range(permission.key.clone(), permission.range_end.clone()))
            .collect();
        ranges.sort_by(|a, b| a.start.cmp(&b.start));
        covered(&ranges, &need.range)
    }

    /// The change of the settings that an edit comes to; `None` when there is nothing to change.
    ///
    /// # Errors
    /// [`AuthError`], as etcd would answer.
    pub fn edit(&self, edit: Edit) -> Result<Option<Change>, AuthError> {
        let entries = match edit {
            Edit::Enable if !self.enabled => self.enable()?,
            Edit::Disable if self.enabled => [(ENABLED.into(), Some(flag(false)))].into(),
            Edit::Enable | Edit::Disable => return Ok(None),
            Edit::UserAdd(user) => self.user_add(user)?,
            Edit::UserDelete(name) => self.user_delete(&name)?,
            Edit::UserPassword(name, password) => {
                [stored(&User { password, ..self.user(&name)?.clone() })].into()
            }
            Edit::UserGrant(user, role) => match self.user_grant(&user, role)? {
                Some(user) => [stored(&user)].into(),
                None => return Ok(None),
            },
            Edit::UserRevoke(user, role) => [stored(&self.user_revoke(&user, &role)?)].into(),
            Edit::RoleAdd(name) => self.role_add(name)?,
            Edit::RoleDelete(name) => self.role_delete(&name)?,
            Edit::RoleGrant(name, permission) => {
                [stored(&self.role_grant(&name, permission)?)].into()
            }
            Edit::RoleRevoke(name, key, end) => {
                [stored(&self.role_revoke(&name, &key, &end)?)].into()
            }
        };
        Ok(Some(self.change(entries)))
    }

    fn change(&self, mut entries: Entries) -> Change {
        let revision = Bytes::copy_from_slice(&(self.revision + 1).to_be_bytes());
        entries.push((REVISION.into(), Some(revision)));
        Change { expect: self.settings, entries }
    }

    fn enable(&self) -> Result<Entries, AuthError> {
        self.user(ROOT).map_err(|_| AuthError::RootUserNotExist)?;
        if !self.has_role(ROOT, ROOT) {
            return Err(AuthError::RootRoleNotExist);
        }
        Ok([(ENABLED.into(), Some(flag(true)))].into())
    }

    fn user_add(&self, user: User) -> Result<Entries, AuthError> {
        if user.name.is_empty() {
            return Err(AuthError::UserEmpty);
        }
        if self.users.contains_key(&user.name) {
            return Err(AuthError::UserAlreadyExist);
        }
        Ok([stored(&user)].into())
    }

    fn user_delete(&self, name: &str) -> Result<Entries, AuthError> {
        if self.enabled && name == ROOT {
            return Err(AuthError::InvalidAuthMgmt);
        }
        let user = self.user(name)?;
        Ok([(user.key(), None)].into())
    }

    fn user_grant(&self, user: &str, role: String) -> Result<Option<User>, AuthError> {
        let mut user = self.user(user)?.clone();
        if role != ROOT {
            self.role(&role)?;
        }
        let Err(at) = user.roles.binary_search(&role) else { return Ok(None) };
        user.roles.insert(at, role);
        Ok(Some(user))
    }

    fn user_revoke(&self, user: &str, role: &str) -> Result<User, AuthError> {
        if self.enabled && user == ROOT && role == ROOT {
            return Err(AuthError::InvalidAuthMgmt);
        }
        let user = self.user(user)?;
        user.without(role).ok_or(AuthError::RoleNotGranted)
    }

    fn role_add(&self, name: String) -> Result<Entries, AuthError> {
        if name.is_empty() {
            return Err(AuthError::RoleEmpty);
        }
        if self.roles.contains_key(&name) {
            return Err(AuthError::RoleAlreadyExist);
        }
        Ok([stored(&Role { name, permissions: Vec::new() })].into())
    }

    fn role_delete(&self, name: &str) -> Result<Entries, AuthError> {
        if self.enabled && name == ROOT {
            return Err(AuthError::InvalidAuthMgmt);
        }
        let role = self.role(name)?;
        let users = self.users.values().filter_map(|user| user.without(name));
        let mut entries: Entries = users.map(|user| stored(&user)).collect();
        entries.push((role.key(), None));
        Ok(entries)
    }

    fn role_grant(&self, name: &str, permission: Option<Permission>) -> Result<Role, AuthError> {
        let permission = permission.ok_or(AuthError::PermissionNotGiven)?;
        if !permission.makes_sense() {
            return Err(AuthError::InvalidAuthMgmt);
        }
        let mut role = self.role(name)?.clone();
        match role.permissions.iter_mut().find(|held| held.same_range(&permission)) {
            Some(held) => held.grade = permission.grade,
            None => role.permissions.push(permission),
        }
        role.permissions.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(role)
    }

    fn role_revoke(&self, name: &str, key: &Bytes, end: &Bytes) -> Result<Role, AuthError> {
        let mut role = self.role(name)?.clone();
        let held = role.permissions.len();
        role.permissions.retain(|held| held.key != key || held.range_end != end);
        if role.permissions.len() == held {
            return Err(AuthError::PermissionNotGranted);
        }
        Ok(role)
    }
}

type Entries = Vec<(Bytes, Option<Bytes>)>;

fn flag(on: bool) -> Bytes {
    Bytes::from_static(if on { &[1] } else { &[0] })
}

/// What has a place of its own in the settings.
trait Keyed: Message {
    fn key(&self) -> Bytes;
}

impl Keyed for User {
    fn key(&self) -> Bytes {
        [USERS, &self.name].concat().into()
    }
}

impl Keyed for Role {
    fn key(&self) -> Bytes {
        [ROLES, &self.name].concat().into()
    }
}

fn stored(value: &impl Keyed) -> (Bytes, Option<Bytes>) {
    (value.key(), Some(value.encode_to_vec().into()))
}

fn decoded<T: Message + Default>(
    settings: &Settings,
    prefix: &'static str,
) -> impl Iterator<Item = T> {
    settings.iter(prefix.as_bytes()).filter_map(|(_, value)| T::decode(value.clone()).ok())
}

impl User {
    /// The user with one role less, if it has that role.
    fn without(&self, role: &str) -> Option<Self> {
        let mut user = self.clone();
        user.roles.retain(|name| name != role);
        (user.roles.len() < self.roles.len()).then_some(user)
    }
}

impl Permission {
    fn grants(&self, right: Right) -> bool {
        match self.grade() {
            Grade::ReadWrite => true,
            Grade::Read => right == Right::Read,
            Grade::Write => right == Right::Write,
        }
    }

    fn same_range(&self, other: &Self) -> bool {
        self.key == other.key && self.range_end == other.range_end
    }

    fn makes_sense(&self) -> bool {
        let end = &self.range_end[..];
        Grade::try_from(self.grade).is_ok()
            && !self.key.is_empty()
            && (end.is_empty() || end == [0] || end > &self.key[..])
    }
}

/// A range in etcd's way: an empty end is one key, a zero byte is no end.
pub fn range(start: Bytes, end: Bytes) -> KeyRange {
    let end = match &end[..] {
        [] => RangeEnd::Single,
        [0] => RangeEnd::Unbounded,
        _ => RangeEnd::Before(end),
    };
    KeyRange { start, end }
}

/// Whether ranges, sorted by their starts, cover a range without a gap.
fn covered(ranges: &[KeyRange], wanted: &KeyRange) -> bool {
    let mut from = wanted.start.to_vec();
    let end = end_of(wanted);
    for range in ranges {
        if range.start[..] > from[..] {
            return false;
        }
        match (end_of(range), &end) {
            (None, _) => return true,
            (Some(reached), Some(end)) if reached >= *end => return true,
            (Some(reached), _) => from = from.max(reached),
        }
    }
    false
}

/// The first key after a range; none after one without an end.
fn end_of(range: &KeyRange) -> Option<Vec<u8>> {
    match &range.end {
        RangeEnd::Single => Some([&range.start[..], &[0]].concat()),
        RangeEnd::Before(end) => Some(end.to_vec()),
        RangeEnd::Unbounded => None,
    }
}

impl fmt::Display for AuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RootUserNotExist => "root user does not exist",
            Self::RootRoleNotExist => "root user does not have root role",
            Self::UserAlreadyExist => "user name already exists",
            Self::UserEmpty => "user name is empty",
            Self::UserNotFound => "user name not found",
            Self::RoleAlreadyExist => "role name already exists",
            Self::RoleNotFound => "role name not found",
            Self::RoleEmpty => "role name is empty",
            Self::AuthFailed => "authentication failed, invalid user ID or password",
            Self::PermissionNotGiven => "permission not given",
            Self::PermissionDenied => "permission denied",
            Self::RoleNotGranted => "role is not granted to the user",
            Self::PermissionNotGranted => "permission is not granted to the role",
            Self::AuthNotEnabled => "authentication is not enabled",
            Self::InvalidAuthToken => "invalid auth token",
            Self::InvalidAuthMgmt => "invalid auth management",
        })
    }
}

impl core::error::Error for AuthError {}
