//! Golden scripts of users, roles and permissions: `> ` lines are commands, the lines below them
//! the answers. `KNARR_BLESS=1` writes the answers anew.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::fmt::Write as _;

use bytes::Bytes;
use knarr_etcd_model::auth::{Auth, Edit, Grade, Need, Permission, Right, User, range};
use knarr_mvcc::{Command, Keyspace};

#[test]
fn auth_scripts() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/auth.txt");
    let text = std::fs::read_to_string(path).unwrap();
    let mut keyspace = Keyspace::new();
    let mut out = String::new();
    for line in text.lines() {
        let Some(command) = line.strip_prefix("> ") else {
            if line.is_empty() || line.starts_with('#') {
                writeln!(out, "{line}").unwrap();
            }
            continue;
        };
        writeln!(out, "{line}\n{}", run(&mut keyspace, command)).unwrap();
    }
    if std::env::var_os("KNARR_BLESS").is_some() {
        std::fs::write(path, &out).unwrap();
    }
    assert_eq!(text, out, "KNARR_BLESS=1 rewrites it");
}

fn run(keyspace: &mut Keyspace, line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let word = |at: usize| words.get(at).copied().unwrap_or_default().trim_matches('"').to_owned();
    let auth = Auth::read(keyspace.settings());
    let edit = match words[0] {
        "status" => return format!("enabled {}, revision {}", auth.enabled(), auth.revision()),
        "user" => return format!("{:?}", auth.user(&word(1)).map(|user| &user.roles)),
        "role" => return show_role(&auth, &word(1)),
        "may" => {
            let user = (words[1] != "nobody").then_some(words[1]);
            let needs: Vec<Need> = words[2..].iter().map(|word| need(word)).collect();
            return auth.permits(user, &needs).map_or_else(|e| e.to_string(), |()| "yes".into());
        }
        "admin" => {
            return auth
                .administrates(words.get(1).copied())
                .map_or_else(|e| e.to_string(), |()| "yes".into());
        }
        "enable" => Edit::Enable,
        "disable" => Edit::Disable,
        "user-add" => Edit::UserAdd(User { name: word(1), ..User::default() }),
        "user-delete" => Edit::UserDelete(word(1)),
        "passwd" => Edit::UserPassword(word(1), "hash".into()),
        "grant-role" => Edit::UserGrant(word(1), word(2)),
        "revoke-role" => Edit::UserRevoke(word(1), word(2)),
        "role-add" => Edit::RoleAdd(word(1)),
        "role-delete" => Edit::RoleDelete(word(1)),
        "grant" => Edit::RoleGrant(word(1), permission(&words[2..])),
        "revoke" => {
            let (key, end) = ends(&word(2));
            Edit::RoleRevoke(word(1), key, end)
        }
        other => panic!("unknown command {other}"),
    };
    match auth.edit(edit) {
        Ok(None) => "nothing to do".into(),
        Err(error) => format!("refused: {error}"),
        Ok(Some(change)) => match keyspace.apply(1, &Command::Settings(change)) {
            Ok(_) => format!("revision {}", Auth::read(keyspace.settings()).revision()),
            Err(refusal) => format!("refused: {refusal}"),
        },
    }
}

fn show_role(auth: &Auth, name: &str) -> String {
    let show = |p: &Permission| format!("{:?} {:?} {:?}", p.grade(), p.key, p.range_end);
    match auth.role(name) {
        Ok(role) => role.permissions.iter().map(show).collect::<Vec<_>>().join(", "),
        Err(error) => error.to_string(),
    }
}

/// `a` is a key, `a..c` a range, `a..` has no end.
fn ends(word: &str) -> (Bytes, Bytes) {
    let word = word.trim_matches('"');
    let (start, end) = word
        .split_once("..")
        .map_or((word, ""), |(start, end)| (start, if end.is_empty() { "\0" } else { end }));
    (start.to_owned().into(), end.to_owned().into())
}

/// `read:a..c`
fn need(word: &str) -> Need {
    let (right, keys) = word.split_once(':').unwrap();
    let right = if right == "read" { Right::Read } else { Right::Write };
    let (start, end) = ends(keys);
    Need { right, range: range(start, end) }
}

fn permission(words: &[&str]) -> Option<Permission> {
    let grade = match *words.first()? {
        "read" => Grade::Read,
        "write" => Grade::Write,
        _ => Grade::ReadWrite,
    };
    let (key, range_end) = ends(words[1]);
    Some(Permission { grade: grade.into(), key, range_end })
}
