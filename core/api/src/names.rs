//! Rules for names (RFC 1123, RFC 1035) with upstream's messages.

use alloc::format;
use alloc::string::String;

const DNS1123_LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric \
characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or \
'123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const DNS1123_SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case \
alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. \
'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]\
([-a-z0-9]*[a-z0-9])?)*')";
const DNS1035_LABEL: &str = "a DNS-1035 label must consist of lower case alphanumeric characters \
or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. \
'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED_NAME: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', \
and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or \
'123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric \
characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. \
'MyValue',  or 'my_value',  or '12345', regex used for validation is \
'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

/// What is wrong with a name, or nothing.
pub type Verdict = Result<(), String>;

/// `[a-z0-9]([-a-z0-9]*[a-z0-9])?`, at most 63 bytes.
pub fn dns1123_label(name: &str) -> Verdict {
    within(name, 63)?;
    rule(is_label(name), DNS1123_LABEL)
}

/// Labels joined by dots, at most 253 bytes.
pub fn dns1123_subdomain(name: &str) -> Verdict {
    within(name, 253)?;
    rule(name.split('.').all(is_label), DNS1123_SUBDOMAIN)
}

/// A label that begins with a letter, at most 63 bytes.
pub fn dns1035_label(name: &str) -> Verdict {
    within(name, 63)?;
    rule(is_label(name) && name.starts_with(|c: char| c.is_ascii_lowercase()), DNS1035_LABEL)
}

/// What may stand as one segment of a URL path (RBAC names are free otherwise).
pub fn path_segment(name: &str) -> Verdict {
    match name {
        "." | ".." => Err(format!("may not be '{name}'")),
        _ if name.contains('/') => Err("may not contain '/'".into()),
        _ if name.contains('%') => Err("may not contain '%'".into()),
        _ => Ok(()),
    }
}

/// A label or annotation key: an optional DNS prefix, then a name of at most 63 bytes.
pub fn qualified_name(name: &str) -> Verdict {
    let (prefix, name) = match name.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, name),
    };
    match prefix {
        Some("") => return Err("prefix part must be non-empty".into()),
        Some(prefix) => {
            dns1123_subdomain(prefix).map_err(|why| format!("prefix part {why}"))?;
        }
        None => {}
    }
    if name.is_empty() {
        return Err("name part must be non-empty".into());
    }
    if name.len() > 63 {
        return Err("name part must be no more than 63 bytes".into());
    }
    rule(is_word(name), QUALIFIED_NAME)
}

/// A label's value: empty, or a word of at most 63 bytes.
pub fn label_value(value: &str) -> Verdict {
    within(value, 63)?;
    rule(value.is_empty() || is_word(value), LABEL_VALUE)
}

fn within(name: &str, max: usize) -> Verdict {
    if name.len() > max { Err(format!("must be no more than {max} bytes")) } else { Ok(()) }
}

fn rule(holds: bool, text: &str) -> Verdict {
    if holds { Ok(()) } else { Err(text.into()) }
}

fn is_label(name: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    !name.is_empty()
        && name.bytes().all(|c| inner(c) || c == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn is_word(name: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c))
        && edge(name.chars().next())
        && edge(name.chars().last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        type Case = (fn(&str) -> Verdict, &'static [&'static str], &'static [&'static str]);
        let cases: &[Case] = &[
            (dns1123_label, &["a", "0-a"], &["", "-a", "a-", "A", "a.b"]),
            (dns1123_subdomain, &["a.b", "a"], &["a..b", ".a", "a_b", ""]),
            (dns1035_label, &["a1"], &["1a", ""]),
            (qualified_name, &["a/B_c", "x.y"], &["/a", "a/", "a/b/c", "A/b", "-x"]),
            (label_value, &["", "A.b"], &["a b", ".a"]),
            (path_segment, &["system:x"], &["..", "a/b", "a%b"]),
        ];
        for (rule, good, bad) in cases {
            good.iter().for_each(|name| assert_eq!(rule(name), Ok(()), "{name}"));
            bad.iter().for_each(|name| assert!(rule(name).is_err(), "{name}"));
        }
        assert!(dns1123_label(&"a".repeat(64)).is_err());
    }
}
