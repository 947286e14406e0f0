//! The search path in one round.
//!
//! A client with `ndots:5` asks for `example.com` as `example.com.<ns>.svc.cluster.local` first,
//! then down its search path, each a round trip. Whoever knows the client's path can walk it for
//! the client: the answer is an alias to the name that was found (as CoreDNS's autopath does).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// The names that a client in `namespace` which asked for `name` would ask for next, in order;
/// `None` when that is not how its search path begins. `outer` are the search domains of the node.
pub fn search_path(
    name: &str,
    namespace: &str,
    domain: &str,
    outer: &[String],
) -> Option<Vec<String>> {
    let first = format!(".{namespace}.svc.{domain}");
    let wanted = name.strip_suffix(&first).filter(|wanted| !wanted.is_empty())?;
    let inner = [format!("svc.{domain}"), domain.to_string()];
    let below = inner.iter().chain(outer).map(|domain| format!("{wanted}.{domain}"));
    Some(below.chain([wanted.to_string()]).collect())
}
