//! All keys in order, each with its newest version: blocks in blocks in a list, all of them sorted.
//!
//! A map of the standard library would hold every key a second time, stay half empty where keys
//! come in order, as those of a cluster do, and look at a dozen keys all over the memory to find
//! one. A block knows what its keys begin with, and of each the bytes that follow, so that only the
//! key that is found is looked at. The list is short enough to stay in the processor's cache.

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
}

/// What stands in order.
trait Ordered {
    /// The key it stands by.
    fn bytes(&self) -> &[u8];
}

impl Ordered for Key {
    fn bytes(&self) -> &[u8] {
        self.newest.key()
    }
}

impl<T> Ordered for Block<T> {
    fn bytes(&self) -> &[u8] {
        &self.low
    }
}

/// A block is split where it would have more items.
const FULL: usize = 64;
/// The room of a block grows by so many.
const STEP: usize = 8;

/// Items that follow each other: keys, or blocks of them.
#[derive(Clone, Debug)]
struct Block<T> {
    /// No key is before it.
    low: Box<[u8]>,
    /// So much of it do the keys of all items begin with.
    common: usize,
    /// What follows that in each: eight bytes, zeros where it ends.
    next: Vec<u64>,
    items: Vec<T>,
}

/// All keys, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys {
    /// No block in any is empty.
    blocks: Vec<Block<Block<Key>>>,
    len: usize,
}

/// Where a key is, or would be: at a place of an inner block of an outer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    outer: usize,
    inner: usize,
    at: usize,
}

impl Place {
    pub(crate) const FIRST: Self = Self { outer: 0, inner: 0, at: 0 };

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
        let outer = self.blocks.partition_point(|block| *block.low <= *key).saturating_sub(1);
        let Some(block) = self.blocks.get(outer) else { return Err(Place::FIRST) };
        let inner = block.find(key).unwrap_or_else(|behind| behind.saturating_sub(1));
        let place = |at| Place { outer, inner, at };
        block.items[inner].find(key).map(place).map_err(place)
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
        Place { outer: self.blocks.len(), ..Place::FIRST }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Key> {
        let Place { outer, inner, at } = self.find(key).ok()?;
        Some(&self.blocks[outer].items[inner].items[at])
    }

    /// The key at a place where one is.
    pub(crate) fn at_mut(&mut self, Place { outer, inner, at }: Place) -> &mut Key {
        &mut self.blocks[outer].items[inner].items[at]
    }

    /// The keys from one place to another.
    pub(crate) fn between(
        &self,
        from: Place,
        to: Place,
    ) -> impl DoubleEndedIterator<Item = &Key> + use<'_> {
        (from.outer..=to.outer).flat_map(move |outer| {
            let blocks = self.blocks.get(outer).map_or(&[][..], |block| &block.items);
            let first = if outer == from.outer { from.inner } else { 0 };
            let last = if outer == to.outer { to.inner + 1 } else { blocks.len() };
            (first..last.min(blocks.len())).flat_map(move |inner| {
                let keys = &blocks[inner].items;
                let is = |place: Place| (outer, inner) == (place.outer, place.inner);
                let start = if is(from) { from.at } else { 0 };
                let end = if is(to) { to.at } else { keys.len() };
                keys.get(start..end).unwrap_or_default()
            })
        })
    }

    /// Adds a key where it belongs.
    pub(crate) fn insert(&mut self, mut place: Place, key: Key) {
        self.len += 1;
        if self.blocks.is_empty() {
            let inner = Block::of(Vec::new(), key.bytes());
            self.blocks.push(Block::of(Vec::from([inner]), key.bytes()));
        }
        if self.blocks[place.outer].items[place.inner].items.len() == FULL {
            self.split(place, key.bytes());
            place = self.from(key.bytes());
        }
        let outer = &mut self.blocks[place.outer];
        let inner = &mut outer.items[place.inner];
        let is_first = *key.bytes() < *inner.low;
        inner.insert(place.at, key);
        if is_first {
            outer.measure();
        }
    }

    /// Splits the inner block of a place where a key will be, and the outer one if need be.
    fn split(&mut self, Place { mut outer, inner, at }: Place, key: &[u8]) {
        let rest = self.blocks[outer].items[inner].split_off(kept(at), key);
        let mut at = inner + 1;
        if self.blocks[outer].items.len() == FULL {
            let kept = kept(at);
            let more = self.blocks[outer].split_off(kept, rest.bytes());
            self.blocks.insert(outer + 1, more);
            if at >= kept {
                (outer, at) = (outer + 1, at - kept);
            }
        }
        self.blocks[outer].insert(at, rest);
    }

    /// Removes the key at a place where one is.
    pub(crate) fn remove(&mut self, Place { outer, inner, at }: Place) {
        self.len -= 1;
        let blocks = &mut self.blocks[outer];
        let keys = &mut blocks.items[inner];
        keys.items.remove(at);
        keys.next.remove(at);
        if settle(&mut blocks.items, inner) {
            blocks.measure();
            settle(&mut self.blocks, outer);
        }
    }
}

/// How many items stay in a full block that is split for one at a place. Keys that come in order
/// leave full blocks behind.
fn kept(at: usize) -> usize {
    if at == FULL { FULL } else { FULL / 2 }
}

/// After a block has lost an item: one that is empty goes, and two that are small together become
/// one. Whether a block is gone.
fn settle<T: Ordered>(blocks: &mut Vec<Block<T>>, at: usize) -> bool {
    let (len, next) = (blocks[at].items.len(), at + 1);
    if len == 0 {
        blocks.remove(at);
        return true;
    }
    let is_small = blocks.get(next).is_some_and(|next| len + next.items.len() <= FULL / 2);
    if is_small {
        let next = blocks.remove(next);
        blocks[at].items.extend(next.items);
        blocks[at].measure();
    }
    is_small
}

impl<T: Ordered> Block<T> {
    /// A block that begins with its first item, or where that will be.
    fn of(items: Vec<T>, first: &[u8]) -> Self {
        let low = items.first().map_or(first, T::bytes).into();
        let mut block = Self { low, common: 0, next: Vec::new(), items };
        block.measure();
        block
    }

    /// Finds out what the keys have in common, and what follows that.
    fn measure(&mut self) {
        let ends = self.items.first().zip(self.items.last());
        if let Some((first, _)) = ends.filter(|(first, _)| *first.bytes() < *self.low) {
            self.low = first.bytes().into();
        }
        self.common = ends.map_or(self.low.len(), |(first, last)| {
            common(&self.low, first.bytes()).min(common(&self.low, last.bytes()))
        });
        self.next.clear();
        self.next.reserve_exact(self.items.capacity());
        self.next.extend(self.items.iter().map(|item| next(&item.bytes()[self.common..])));
    }

    fn find(&self, key: &[u8]) -> Result<usize, usize> {
        let prefix = &self.low[..self.common];
        let Some(rest) = key.strip_prefix(prefix) else {
            return Err(if key < prefix { 0 } else { self.items.len() });
        };
        let wanted = next(rest);
        // Counted, not searched for: no step waits for the memory that the one before it asked for.
        let count =
            |of: Ordering| self.next.iter().filter(|next| (**next).cmp(&wanted) == of).count();
        let (from, same) = (count(Ordering::Less), count(Ordering::Equal));
        let found = self.items[from..from + same].binary_search_by(|other| other.bytes().cmp(key));
        found.map(|at| from + at).map_err(|at| from + at)
    }

    fn insert(&mut self, at: usize, item: T) {
        if self.items.len() == self.items.capacity() {
            self.items.reserve_exact(STEP);
            self.next.reserve_exact(STEP);
        }
        let fits = item.bytes().strip_prefix(&self.low[..self.common]).map(next);
        let fits = fits.filter(|_| *self.low <= *item.bytes());
        self.items.insert(at, item);
        match fits {
            Some(next) => self.next.insert(at, next),
            None => self.measure(),
        }
    }

    /// Takes the items from a place on; if there are none, `first` will be.
    fn split_off(&mut self, at: usize, first: &[u8]) -> Self {
        let rest = Self::of(self.items.split_off(at), first);
        self.items.shrink_to(at + STEP);
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
