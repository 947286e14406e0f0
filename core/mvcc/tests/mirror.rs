//! A mirror shows what its original shows, however often it is told the same.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use bytes::Bytes;
use knarr_mvcc::*;

mod script;

const ALL: &str = "txn [ ] [ put a 1 ; put b 1 ]
put a 2
del a
txn [ ] [ put b 2 ; txn [ ] [ put c 1 ] ]
put a 3
del *";

#[test]
fn a_mirror_that_begins_again_shows_the_same() {
    let (mut original, mut mirror) = (Keyspace::new(), Keyspace::new());
    let (all, start) = (KeyRange::prefix(Bytes::new()), Revision(1));
    for (index, line) in (1..).zip(ALL.lines()) {
        let txn = script::txn(&mut script::words(line));
        original.apply(index, &Command::Txn(txn)).unwrap();
        // From the beginning each time: what it knows already must not count twice.
        let told = original.events(&all, start, original.revision(), usize::MAX).unwrap().events;
        for step in told.chunk_by(|a, b| a.revision == b.revision) {
            let changes = step.iter().map(|event| (event.key.clone(), event.new.clone()));
            mirror.mirror(step[0].revision, changes.collect());
        }
        let shown = |keyspace: &Keyspace| {
            let events = keyspace.events(&all, start, keyspace.revision(), usize::MAX).unwrap();
            let at = |at| keyspace.range(&all, Revision(at), 0).unwrap();
            let states: Vec<_> = (1..=keyspace.revision().0).map(at).collect();
            (events, states, keyspace.live_bytes())
        };
        assert_eq!(shown(&mirror), shown(&original), "after {line}");
    }
}
