//! Writing, from front to end: every page has its place before the first byte goes out, and none
//! but the current one is in memory.
//!
//! Trees are built bottom-up: a bucket's leaves, then the branches above them, level by level. The
//! bucket of all buckets comes last. No branch has a single child: bbolt would not survive the
//! deletion of its leaf.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;

use bytes::Bytes;

use super::{BRANCH, ELEMENT, FREE, HEADER, LEAF, MAGIC, METAS, NESTED, PAGE, VERSION, checksum};

/// Two meta pages and the list of free pages, which is empty.
const FRONT: u64 = 3;

/// Pairs in ascending order of their keys. It is asked more than once and always says the same.
pub trait Source: Send + Sync {
    /// How many pairs.
    fn count(&self) -> usize;
    /// How long a pair's key and value are.
    fn sizes(&self, at: usize) -> (usize, usize);
    /// Writes a key.
    fn key(&self, at: usize, out: &mut Vec<u8>);
    /// Writes a value.
    fn value(&self, at: usize, out: &mut Vec<u8>);
}

impl Source for Vec<(Bytes, Bytes)> {
    fn count(&self) -> usize {
        self.len()
    }

    fn sizes(&self, at: usize) -> (usize, usize) {
        (self[at].0.len(), self[at].1.len())
    }

    fn key(&self, at: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(&self[at].0);
    }

    fn value(&self, at: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(&self[at].1);
    }
}

/// A database on its way out: an iterator over pieces of the file, each some pages long.
pub struct Writer {
    /// The last one is the bucket of buckets.
    buckets: Vec<Box<dyn Source>>,
    nodes: Vec<Node>,
    /// How many pages there are.
    pages: u64,
    /// The next node to write; `None` when the front is.
    next: Option<usize>,
}

/// A branch or leaf that has its place.
struct Node {
    page: u64,
    pages: u64,
    content: Content,
}

enum Content {
    /// These pairs of a bucket.
    Leaf(usize, Range<usize>),
    /// These nodes.
    Branch(Range<usize>),
}

impl Writer {
    /// Finds the place of everything.
    pub fn new(buckets: impl IntoIterator<Item = (Bytes, Box<dyn Source>)>) -> Self {
        let mut writer = Self { buckets: Vec::new(), nodes: Vec::new(), pages: FRONT, next: None };
        let mut roots: Vec<(Bytes, Bytes)> = Vec::new();
        for (name, source) in buckets {
            let root = writer.plan(source);
            // The page where it begins, and the last of the numbers it gave away.
            let value = [root.to_le_bytes(), [0; 8]].concat();
            roots.push((name, value.into()));
        }
        roots.sort_unstable();
        writer.plan(Box::new(roots));
        writer
    }

    /// Size of the file in bytes.
    pub fn size(&self) -> u64 {
        self.pages * PAGE as u64
    }

    /// Places a bucket; the page where it begins.
    fn plan(&mut self, source: Box<dyn Source>) -> u64 {
        let bucket = self.buckets.len();
        let leaves = pack(source.count(), 1, |at| {
            let (key, value) = source.sizes(at);
            key + value
        });
        self.buckets.push(source);
        let mut level = self.place(leaves, |pairs| Content::Leaf(bucket, pairs));
        while level.len() > 1 {
            let first = level.start;
            let branches = pack(level.len(), 2, |at| {
                let (bucket, pair) = self.first_pair(first + at);
                self.buckets[bucket].sizes(pair).0
            });
            level = self.place(branches, |run| Content::Branch(first + run.start..first + run.end));
        }
        self.nodes[level.start].page
    }

    /// Gives nodes their pages; which nodes they are.
    fn place(
        &mut self,
        runs: Vec<(Range<usize>, usize)>,
        content: impl Fn(Range<usize>) -> Content,
    ) -> Range<usize> {
        let first = self.nodes.len();
        for (run, size) in runs {
            let pages = size.div_ceil(PAGE) as u64;
            self.nodes.push(Node { page: self.pages, pages, content: content(run) });
            self.pages += pages;
        }
        first..self.nodes.len()
    }

    /// The first pair below a node, whose key a branch has for it.
    fn first_pair(&self, node: usize) -> (usize, usize) {
        match &self.nodes[node].content {
            Content::Leaf(bucket, pairs) => (*bucket, pairs.start),
            Content::Branch(nodes) => self.first_pair(nodes.start),
        }
    }

    fn front(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FRONT as usize * PAGE);
        for page in 0..2 {
            put_header(&mut out, page, METAS, 0, 1);
            let start = out.len();
            let words = [MAGIC, VERSION, PAGE as u32, 0];
            out.extend(words.into_iter().flat_map(u32::to_le_bytes));
            let root = self.nodes.last().map_or(0, |node| node.page);
            // The root and its number, the free pages, where pages end, the transaction.
            let words = [root, 0, FRONT - 1, self.pages, page];
            out.extend(words.into_iter().flat_map(u64::to_le_bytes));
            let sum = checksum(&out[start..]);
            out.extend(sum.to_le_bytes());
            out.resize(out.len().next_multiple_of(PAGE), 0);
        }
        put_header(&mut out, FRONT - 1, FREE, 0, 1);
        out.resize(out.len().next_multiple_of(PAGE), 0);
        out
    }

    fn node(&self, node: &Node) -> Vec<u8> {
        let mut out = Vec::with_capacity(node.pages as usize * PAGE);
        let mut data = Vec::with_capacity(out.capacity());
        match &node.content {
            Content::Leaf(bucket, pairs) => {
                put_header(&mut out, node.page, LEAF, pairs.len(), node.pages);
                let source = &self.buckets[*bucket];
                let nested = if bucket + 1 == self.buckets.len() { NESTED } else { 0 };
                for (left, pair) in (1..=pairs.len()).rev().zip(pairs.clone()) {
                    let (key, value) = source.sizes(pair);
                    let position = ELEMENT * left + data.len();
                    out.extend(nested.to_le_bytes());
                    put_numbers(&mut out, [position, key, value]);
                    source.key(pair, &mut data);
                    source.value(pair, &mut data);
                }
            }
            Content::Branch(nodes) => {
                put_header(&mut out, node.page, BRANCH, nodes.len(), node.pages);
                for (left, child) in (1..=nodes.len()).rev().zip(nodes.clone()) {
                    let (bucket, pair) = self.first_pair(child);
                    let source = &self.buckets[bucket];
                    let position = ELEMENT * left + data.len();
                    put_numbers(&mut out, [position, source.sizes(pair).0]);
                    out.extend(self.nodes[child].page.to_le_bytes());
                    source.key(pair, &mut data);
                }
            }
        }
        out.append(&mut data);
        out.resize(out.len().next_multiple_of(PAGE), 0);
        out
    }
}

impl Iterator for Writer {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let Some(at) = self.next else {
            self.next = Some(0);
            return Some(self.front());
        };
        let piece = self.node(self.nodes.get(at)?);
        self.next = Some(at + 1);
        Some(piece)
    }
}

/// Divides `count` things into runs that fill a page each, as well as they can while every run has
/// at least `least` of them; with each run the size it makes. Nothing is one empty run.
fn pack(count: usize, least: usize, size: impl Fn(usize) -> usize) -> Vec<(Range<usize>, usize)> {
    let mut runs = Vec::from([(0..0, HEADER)]);
    for at in 0..count {
        let more = ELEMENT + size(at);
        match runs.last_mut() {
            Some((run, filled))
                if *filled + more <= PAGE || run.len() < least || count - at < least =>
            {
                run.end += 1;
                *filled += more;
            }
            _ => runs.push((at..at + 1, HEADER + more)),
        }
    }
    runs
}

fn put_header(out: &mut Vec<u8>, page: u64, what: u16, count: usize, pages: u64) {
    out.extend(page.to_le_bytes());
    out.extend(what.to_le_bytes());
    out.extend((count as u16).to_le_bytes());
    out.extend(((pages - 1) as u32).to_le_bytes());
}

/// Numbers in a table of elements have 32 bits: no value here is as long as that.
fn put_numbers<const N: usize>(out: &mut Vec<u8>, numbers: [usize; N]) {
    out.extend(numbers.into_iter().flat_map(|number| (number as u32).to_le_bytes()));
}
