//! Upstream's agreement on who compacts a shared etcd: everybody counts one key up at an interval,
//! and who does it first compacts to where etcd stood at his last turn. So it happens once per
//! interval however many servers there are, of upstream's make or ours, and nothing younger than an
//! interval is lost.

use std::time::Duration;

use bytes::Bytes;
use knarr_mvcc::{
    Compare, CompareOp, CompareTarget, KeyRange, LeaseId, Op, OpResponse, Query, Revision, Txn,
    TxnResponse,
};
use tokio::time::sleep;

use crate::error::StoreError;
use crate::external::{Link, wire::Scope};

/// Upstream's key; its value is the revision compacted to, its version counts the turns.
const KEY: Bytes = Bytes::from_static(b"compact_rev_key");

/// What one server knows of the agreement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Turn {
    /// The key's version when last seen.
    version: u64,
    /// etcd's revision then.
    revision: Revision,
}

impl Turn {
    /// Counts the key up if nobody did since.
    fn bid(self) -> Txn {
        let value = Bytes::from(self.revision.0.to_string());
        let target = CompareTarget::Version(self.version);
        let range = KeyRange::single(KEY);
        Txn {
            compare: vec![Compare { range, op: CompareOp::Equal, target }],
            success: vec![Op::Put { key: KEY, value, lease: LeaseId(0) }],
            failure: vec![Op::Range(Query::one(KEY))],
        }
    }

    /// What follows from the answer: the next turn, and where to compact to.
    fn judge(self, answer: &TxnResponse) -> (Self, Option<Revision>) {
        let revision = answer.revision;
        if answer.succeeded {
            let compact = Some(self.revision).filter(|revision| revision.0 > 0);
            return (Self { version: self.version + 1, revision }, compact);
        }
        let version = match answer.responses.first() {
            Some(OpResponse::Range(found)) => found.kvs.first().map_or(0, |kv| kv.version),
            _ => 0,
        };
        (Self { version, revision }, None)
    }
}

/// Takes part in the agreement for good.
pub(crate) async fn run(link: Link, every: Duration) {
    // The key is outside everybody's prefix.
    let link = Link { scope: Scope::everything(), ..link };
    let mut turn = Turn::default();
    loop {
        sleep(every).await;
        if let Err(error) = take(&link, &mut turn).await {
            tracing::warn!(%error, "etcd was not compacted");
        }
    }
}

async fn take(link: &Link, turn: &mut Turn) -> Result<(), StoreError> {
    let answer = link.txn(&turn.bid()).await?;
    let (next, compact) = turn.judge(&answer);
    *turn = next;
    let Some(revision) = compact else { return Ok(()) };
    link.compact(revision).await?;
    tracing::info!(revision = revision.0, "etcd is compacted");
    Ok(())
}

#[cfg(test)]
mod tests {
    use knarr_mvcc::{Answer, Command, Keyspace};

    use super::*;

    /// Servers at one etcd: each line a turn of a server; what it compacts to.
    fn play(servers: usize, turns: &[usize]) -> Vec<Option<u64>> {
        let mut etcd = Keyspace::new();
        let mut known = vec![Turn::default(); servers];
        let mut apply = |txn: Txn| match etcd.apply(0, &Command::Txn(txn)) {
            Ok(Answer::Txn(answer)) => answer,
            other => panic!("{other:?}"),
        };
        let mut done = Vec::new();
        for turn in turns {
            let (next, compact) = known[*turn].judge(&apply(known[*turn].bid()));
            known[*turn] = next;
            done.push(compact.map(|revision| revision.0));
            // Somebody writes between two turns.
            let (key, value) = (Bytes::from_static(b"a"), Bytes::new());
            let success = vec![Op::Put { key, value, lease: LeaseId(0) }];
            apply(Txn { success, ..Txn::default() });
        }
        done
    }

    #[test]
    fn one_server_compacts_to_where_its_last_turn_was() {
        assert_eq!(play(1, &[0, 0, 0]), [None, Some(2), Some(4)]);
    }

    #[test]
    fn of_two_servers_the_first_compacts_and_the_other_takes_over() {
        // 0 and 1 take turns: 1 sees that 0 was there. Then 0 is gone, and 1 goes on alone.
        assert_eq!(play(2, &[0, 1, 0, 1, 1, 1]), [None, None, Some(2), None, Some(6), Some(8)]);
    }
}
