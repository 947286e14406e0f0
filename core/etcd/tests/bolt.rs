//! The database against itself, against the rules of bbolt's own check, and against damage.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;

use bytes::Bytes;
use knarr_etcd_model::bolt::{Database, Element, Source, Writer};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

const PAGE: usize = 4096;

type Pairs = BTreeMap<Vec<u8>, Vec<u8>>;
type Buckets = BTreeMap<Vec<u8>, Pairs>;

fn file(buckets: &Buckets) -> Vec<u8> {
    let sources = buckets.iter().map(|(name, pairs)| {
        let pairs: Vec<(Bytes, Bytes)> =
            pairs.iter().map(|(key, value)| (key.clone().into(), value.clone().into())).collect();
        (Bytes::from(name.clone()), Box::new(pairs) as Box<dyn Source>)
    });
    let writer = Writer::new(sources);
    let size = writer.size();
    let bytes: Vec<u8> = writer.flatten().collect();
    assert_eq!(bytes.len() as u64, size, "the size was known before");
    bytes
}

fn read(bytes: &[u8]) -> Result<Buckets, String> {
    let fault = |fault: knarr_etcd_model::bolt::Fault| fault.to_string();
    let mut buckets = Buckets::new();
    for element in Database::open(bytes).map_err(fault)?.root().elements() {
        let Element::Bucket(name, bucket) = element.map_err(fault)? else { continue };
        let pairs = bucket.pairs().map(|pair| {
            let (key, value) = pair.map_err(fault)?;
            Ok((key.to_vec(), value.to_vec()))
        });
        buckets.insert(name.to_vec(), pairs.collect::<Result<_, String>>()?);
    }
    Ok(buckets)
}

/// What bbolt's check demands: every page below the high-water mark belongs to one tree, once.
fn check_pages(bytes: &[u8]) {
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let mut seen = vec![false; bytes.len() / PAGE];
    seen[..3].fill(true);
    let mut waiting = vec![number(16 + 16)];
    while let Some(page) = waiting.pop() {
        let at = page as usize * PAGE;
        assert_eq!(number(at), page);
        let half = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let pages = page as usize..=page as usize + word(at + 12) as usize;
        assert!(seen[pages.clone()].iter().all(|seen| !seen), "page {page} twice");
        seen[pages].fill(true);
        let entries = (0..usize::from(half(at + 10))).map(|entry| at + 16 + 16 * entry);
        match half(at + 8) {
            1 => {
                assert!(entries.len() >= 2, "a branch with one child");
                waiting.extend(entries.map(|entry| number(entry + 8)));
            }
            2 => {
                waiting.extend(entries.filter(|entry| word(*entry) == 1).map(|entry| {
                    number(entry + word(entry + 4) as usize + word(entry + 8) as usize)
                }))
            }
            other => panic!("page {page} is a {other}"),
        }
    }
    assert!(seen.iter().all(|seen| *seen), "a page that nobody needs");
    assert_eq!(number(16 + 40), seen.len() as u64, "the high-water mark");
}

fn buckets() -> impl Strategy<Value = Buckets> {
    let key = || prop_oneof![8 => vec(any::<u8>(), 1..40), 1 => vec(any::<u8>(), 1500..3000)];
    let value = prop_oneof![8 => vec(any::<u8>(), 0..200), 1 => vec(any::<u8>(), 0..20_000)];
    btree_map(vec(any::<u8>(), 1..12), btree_map(key(), value, 0..120), 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read(buckets in buckets()) {
        let bytes = file(&buckets);
        check_pages(&bytes);
        prop_assert_eq!(read(&bytes), Ok(buckets));
    }

    #[test]
    fn no_damage_is_fatal(
        buckets in buckets(),
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = file(&buckets);
        // Headers and tables are where it hurts, so half of the flips go there.
        for (place, flip) in flips {
            let place = place.index(2 * bytes.len());
            let head = place % bytes.len() / PAGE * PAGE + place % 64;
            let place = if place < bytes.len() { place } else { head };
            bytes[place] ^= flip;
        }
        let _ = read(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        let _ = read(&bytes);
    }
}

#[test]
fn a_tree_of_many_levels_is_written_and_read() {
    // Long keys make narrow branches.
    let pairs = (0..2000_u32).map(|n| ([&n.to_be_bytes()[..], &[7; 1400]].concat(), vec![1; 900]));
    let buckets = Buckets::from([(b"key".to_vec(), pairs.collect())]);
    let bytes = file(&buckets);
    check_pages(&bytes);
    assert_eq!(read(&bytes), Ok(buckets));
}

#[test]
fn a_branch_that_leads_to_itself_ends() {
    let pairs = (0..2000_u32).map(|n| (n.to_be_bytes().to_vec(), vec![1; 100])).collect();
    let mut bytes = file(&Buckets::from([(b"key".to_vec(), pairs)]));
    let branch = bytes.chunks(PAGE).position(|page| page[8] == 1).unwrap();
    let child = branch * PAGE + 16 + 8;
    bytes[child..child + 8].copy_from_slice(&(branch as u64).to_le_bytes());
    let refused = read(&bytes).unwrap_err();
    assert!(refused.contains("a tree without end"), "{refused}");
}

#[test]
fn branches_that_share_their_children_end() {
    let mut bytes = file(&Buckets::from([(b"key".to_vec(), Pairs::new())]));
    // Forty branches, each of which leads to the next 200 times, and at last to an empty leaf: more
    // ways than anybody could go, and no key on any of them.
    let first = bytes.len() / PAGE;
    for page in first..first + 40 {
        let mut branch = [&page.to_le_bytes()[..], &[1, 0, 200, 0, 0, 0, 0, 0]].concat();
        for _ in 0..200 {
            branch.extend([0; 8]);
            branch.extend((page + 1).to_le_bytes());
        }
        branch.resize(PAGE, 0);
        bytes.extend(branch);
    }
    let mut leaf = [&(first + 40).to_le_bytes()[..], &[2, 0, 0, 0, 0, 0, 0, 0]].concat();
    leaf.resize(PAGE, 0);
    bytes.extend(leaf);
    // The bucket's root is the last page before; where it begins stands behind its name.
    let root = (first - 1) * PAGE + 16 + 16 + 3;
    bytes[root..root + 8].copy_from_slice(&(first as u64).to_le_bytes());
    let refused = read(&bytes).unwrap_err();
    assert!(refused.contains("a tree without end"), "{refused}");
}

/// A page of its own kind behind the others, and the bucket's root there.
fn with_leaf(mut bytes: Vec<u8>, elements: u16, room: usize) -> Vec<u8> {
    let page = bytes.len() / PAGE;
    let data = 16 + 16 * usize::from(elements);
    let size = (data + 2 * usize::from(elements) + room).next_multiple_of(PAGE);
    let more = u32::try_from(size / PAGE - 1).unwrap();
    let mut leaf = vec![0; size];
    leaf[..8].copy_from_slice(&(page as u64).to_le_bytes());
    leaf[8] = 2;
    leaf[10..12].copy_from_slice(&elements.to_le_bytes());
    leaf[12..16].copy_from_slice(&more.to_le_bytes());
    // The keys count up; each value is all that comes behind its key.
    for n in 0..usize::from(elements) {
        let (entry, key) = (16 + 16 * n, data + 2 * n);
        let words = [0, key - entry, 2, size - key - 2].map(|word| u32::try_from(word).unwrap());
        let words: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        leaf[entry..entry + 16].copy_from_slice(&words);
        leaf[key..key + 2].copy_from_slice(&u16::try_from(n).unwrap().to_be_bytes());
    }
    bytes.extend(leaf);
    let root = (page - 1) * PAGE + 16 + 16 + 3;
    bytes[root..root + 8].copy_from_slice(&(page as u64).to_le_bytes());
    bytes
}

#[test]
fn values_that_share_their_bytes_are_not_multiplied() {
    let empty = file(&Buckets::from([(b"key".to_vec(), Pairs::new())]));
    let one = with_leaf(empty.clone(), 1, 1 << 20);
    assert_eq!(read(&one).unwrap()[&b"key"[..]].len(), 1, "that alone is nothing to refuse");
    let refused = read(&with_leaf(empty, 10_000, 1 << 20)).unwrap_err();
    assert!(refused.contains("holds more than the file has"), "{refused}");
}

#[test]
fn keys_out_of_order_are_refused() {
    let pairs = [(b"a".to_vec(), vec![]), (b"b".to_vec(), vec![])];
    let mut bytes = file(&Buckets::from([(b"key".to_vec(), Pairs::from(pairs))]));
    let keys = 3 * PAGE + 16 + 2 * 16;
    assert_eq!(bytes[keys..keys + 2], *b"ab");
    bytes[keys] = b'b';
    assert_eq!(read(&bytes).unwrap_err(), "page 3 has its keys out of order");
}

#[test]
fn the_newer_of_two_states_counts_unless_it_is_damaged() {
    let mut bytes = file(&Buckets::from([(b"key".to_vec(), Pairs::new())]));
    // The older state leads nowhere.
    let root = 16 + 16;
    bytes[root..root + 8].copy_from_slice(&77_u64.to_le_bytes());
    let sum = bytes[16..16 + 56].iter().fold(0xcbf2_9ce4_8422_2325, |sum: u64, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    bytes[16 + 56..16 + 64].copy_from_slice(&sum.to_le_bytes());
    assert!(read(&bytes).is_ok());
    bytes[PAGE + 16 + 20] ^= 1;
    assert_eq!(read(&bytes).unwrap_err(), "page 77 lies behind the end of the file");
    bytes[20] ^= 1;
    assert_eq!(read(&bytes).unwrap_err(), "page 0 is not the begin of a database");
}
