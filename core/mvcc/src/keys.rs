//! All keys in order, each with its newest version: sorted blocks in a sorted list.
//!
//! A map of the standard library would hold every key a second time, stay half empty where keys
//! come in order, as those of a cluster do, and look at a dozen keys all over the memory to find
//! one. A block knows what its keys begin with, and of each the bytes that follow, so that only the
//! key that is found is looked at.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::mem;

use crate::version::Version;

/// A key as it stands.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    /// Its newest version; maybe a deletion.
    pub(crate) newest: Version,
    /// The number of the change that made it; 0 when that is before the history.
    pub(crate) change: u64,
}

/// What a key costs beside its newest version.
pub(crate) const FRAME: usize = mem::size_of::<Key>() + mem::size_of::<u64>();

impl Key {
    /// The newest version, unless it is a deletion.
    pub(crate) fn live(&self) -> Option<&Version> {
        Some(&self.newest).filter(|version| version.is_live())
    }

    fn bytes(&self) -> &[u8] {
        self.newest.key()
    }
}

/// A block is split where it would have more keys.
const FULL: usize = 64;
/// The room of a block grows by so many.
const STEP: usize = 8;

/// Keys that follow each other.
#[derive(Clone, Debug)]
struct Block {
    /// No key is before it.
    low: Box<[u8]>,
    /// So much of it do all keys begin with.
    common: usize,
    /// What follows that in each key: eight bytes, zeros where it ends.
    next: Vec<u64>,
    keys: Vec<Key>,
}

/// All keys, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys {
    /// None is empty.
    blocks: Vec<Block>,
    len: usize,
}

/// Where a key is, or would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    block: usize,
    at: usize,
}

impl Place {
    pub(crate) const FIRST: Self = Self { block: 0, at: 0 };

    pub(crate) fn next(self) -> Self {
        Self { at: self.at + 1, ..self }
    }
}

impl Keys {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where a key is, or else would be.
    pub(crate) fn find(&self, key: &[u8]) -> Result<Place, Place> {
        let block = self.blocks.partition_point(|block| *block.low <= *key).saturating_sub(1);
        let Some(found) = self.blocks.get(block) else { return Err(Place::FIRST) };
        found.find(key).map(|at| Place { block, at }).map_err(|at| Place { block, at })
    }

    /// The place of the first key that is not before this one.
    pub(crate) fn from(&self, key: &[u8]) -> Place {
        self.find(key).unwrap_or_else(|place| place)
    }

    /// The place of the first key after this one.
    pub(crate) fn after(&self, key: &[u8]) -> Place {
        self.find(key).map_or_else(|place| place, Place::next)
    }

    /// The place behind the last key.
    pub(crate) fn end(&self) -> Place {
        Place { block: self.blocks.len(), at: 0 }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Key> {
        self.find(key).ok().map(|Place { block, at }| &self.blocks[block].keys[at])
    }

    /// The key at a place where one is.
    pub(crate) fn at_mut(&mut self, Place { block, at }: Place) -> &mut Key {
        &mut self.blocks[block].keys[at]
    }

    /// The keys from one place to another.
    pub(crate) fn between(
        &self,
        from: Place,
        to: Place,
    ) -> impl DoubleEndedIterator<Item = &Key> + use<'_> {
        (from.block..=to.block).flat_map(move |block| {
            let keys = self.blocks.get(block).map_or(&[][..], |block| &block.keys);
            let start = if block == from.block { from.at } else { 0 };
            let end = if block == to.block { to.at } else { keys.len() };
            keys.get(start..end).unwrap_or_default()
        })
    }

    /// Adds a key where it belongs.
    pub(crate) fn insert(&mut self, Place { mut block, mut at }: Place, key: Key) {
        self.len += 1;
        if self.blocks.is_empty() {
            self.blocks.push(Block::of(Vec::new(), key.bytes()));
        }
        if self.blocks[block].keys.len() == FULL {
            // Keys that come in order leave full blocks behind.
            let kept = if at == FULL { FULL } else { FULL / 2 };
            let rest = self.blocks[block].split_off(kept, key.bytes());
            self.blocks.insert(block + 1, rest);
            if at >= kept {
                (block, at) = (block + 1, at - kept);
            }
        }
        self.blocks[block].insert(at, key);
    }

    /// Removes the key at a place where one is. Blocks that are small together become one.
    pub(crate) fn remove(&mut self, Place { block, at }: Place) {
        self.len -= 1;
        let next = self.blocks.get(block + 1).map_or(FULL, |next| next.keys.len());
        let Block { next: follows, keys, .. } = &mut self.blocks[block];
        keys.remove(at);
        follows.remove(at);
        if keys.is_empty() {
            self.blocks.remove(block);
        } else if keys.len() + next <= FULL / 2 {
            let next = self.blocks.remove(block + 1);
            self.blocks[block].keys.extend(next.keys);
            self.blocks[block].measure();
        }
    }
}

impl Block {
    /// A block that begins with its first key, or where that will be.
    fn of(keys: Vec<Key>, first: &[u8]) -> Self {
        let low = keys.first().map_or(first, Key::bytes).into();
        let mut block = Self { low, common: 0, next: Vec::new(), keys };
        block.measure();
        block
    }

    /// Finds out what the keys have in common, and what follows that.
    fn measure(&mut self) {
        let (first, last) = (self.keys.first(), self.keys.last());
        let ends = first.zip(last).map(|(first, last)| (first.bytes(), last.bytes()));
        self.common = ends.map_or(self.low.len(), |(first, last)| {
            common(&self.low, first).min(common(&self.low, last))
        });
        self.next.clear();
        self.next.reserve_exact(self.keys.capacity());
        self.next.extend(self.keys.iter().map(|key| next(&key.bytes()[self.common..])));
    }

    fn find(&self, key: &[u8]) -> Result<usize, usize> {
        let prefix = &self.low[..self.common];
        let Some(rest) = key.strip_prefix(prefix) else {
            return Err(if key < prefix { 0 } else { self.keys.len() });
        };
        let wanted = next(rest);
        // Counted, not searched for: no step waits for the memory that the one before it asked for.
        let count =
            |of: Ordering| self.next.iter().filter(|next| (**next).cmp(&wanted) == of).count();
        let (from, same) = (count(Ordering::Less), count(Ordering::Equal));
        let found = self.keys[from..from + same].binary_search_by(|other| other.bytes().cmp(key));
        found.map(|at| from + at).map_err(|at| from + at)
    }

    fn insert(&mut self, at: usize, key: Key) {
        if self.keys.len() == self.keys.capacity() {
            self.keys.reserve_exact(STEP);
            self.next.reserve_exact(STEP);
        }
        let fits = key.bytes().strip_prefix(&self.low[..self.common]).map(next);
        if *key.bytes() < *self.low {
            self.low = key.bytes().into();
        }
        self.keys.insert(at, key);
        match fits {
            Some(next) => self.next.insert(at, next),
            None => self.measure(),
        }
    }

    /// Takes the keys from a place on; if there are none, `first` will be.
    fn split_off(&mut self, at: usize, first: &[u8]) -> Self {
        let rest = Self::of(self.keys.split_off(at), first);
        self.keys.shrink_to(at + STEP);
        self.next.shrink_to(at + STEP);
        self.measure();
        rest
    }
}

/// How many bytes two keys begin with together.
fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The next eight bytes as a number of the same order, zeros where there are fewer.
fn next(bytes: &[u8]) -> u64 {
    let mut next = [0; 8];
    let len = bytes.len().min(8);
    next[..len].copy_from_slice(&bytes[..len]);
    u64::from_be_bytes(next)
}
