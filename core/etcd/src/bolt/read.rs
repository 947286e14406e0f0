//! Reading, of files that nobody vouches for: every offset is checked, no page is read twice, and
//! what a bucket holds is together not longer than the file.

use alloc::vec::Vec;

use super::{BRANCH, ELEMENT, Fault, HEADER, LEAF, MAGIC, META, NESTED, VERSION, checksum};

/// How deep a tree may be. Two elements on each page of a file of 2^48 bytes need less.
const MAX_DEPTH: usize = 48;

/// A whole database file.
#[derive(Clone, Copy, Debug)]
pub struct Database<'a> {
    bytes: &'a [u8],
    page_size: usize,
    root: u64,
}

/// One bucket.
#[derive(Clone, Copy, Debug)]
pub struct Bucket<'a> {
    database: Database<'a>,
    root: Root<'a>,
}

/// Where a bucket's tree begins.
#[derive(Clone, Copy, Debug)]
enum Root<'a> {
    Page(u64),
    /// A small bucket is a leaf inside the value that names it.
    Inline(&'a [u8]),
}

/// What a bucket holds.
#[derive(Clone, Copy, Debug)]
pub enum Element<'a> {
    /// A key and its value.
    Pair(&'a [u8], &'a [u8]),
    /// A name and its bucket.
    Bucket(&'a [u8], Bucket<'a>),
}

/// The elements of a bucket in key order. It ends with the first fault.
#[derive(Debug)]
pub struct Elements<'a> {
    database: Database<'a>,
    /// Pages from the root down, each with the element that comes next.
    path: Vec<(Page<'a>, usize)>,
    /// How many pages may still be read, and how many bytes of elements.
    unread: usize,
    room: usize,
    last: Option<&'a [u8]>,
    fault: Option<Fault>,
}

/// A branch or a leaf.
#[derive(Clone, Copy, Debug)]
struct Page<'a> {
    id: u64,
    leaf: bool,
    count: usize,
    bytes: &'a [u8],
}

/// What of a meta page is needed.
struct Meta {
    page_size: usize,
    root: u64,
    transaction: u64,
}

impl<'a> Database<'a> {
    /// Finds the newest state in a file. Bytes behind its last page do no harm.
    ///
    /// # Errors
    /// [`Fault`] when no meta page is valid.
    pub fn open(bytes: &'a [u8]) -> Result<Self, Fault> {
        // Where the second one is depends on the size of pages, which the first may not tell.
        let places = core::iter::once(0).chain((9..=16).map(|power| 1 << power));
        let metas = places.filter_map(|at| Meta::at(bytes, at));
        let meta = metas.max_by_key(|meta| meta.transaction);
        let meta = meta.ok_or(Fault { page: 0, what: "is not the begin of a database" })?;
        Ok(Self { bytes, page_size: meta.page_size, root: meta.root })
    }

    /// The bucket that holds all others.
    pub fn root(&self) -> Bucket<'a> {
        Bucket { database: *self, root: Root::Page(self.root) }
    }

    fn page(&self, id: u64) -> Result<Page<'a>, Fault> {
        let fault = |what| Fault { page: id, what };
        let start = usize::try_from(id).ok().and_then(|id| id.checked_mul(self.page_size));
        let rest = start.and_then(|start| self.bytes.get(start..));
        let rest = rest.ok_or(fault("lies behind the end of the file"))?;
        if u64_at(rest, 0) != Some(id) {
            return Err(fault("has another number"));
        }
        let pages = u32_at(rest, 12).map_or(0, |more| more as usize + 1);
        let bytes = pages.checked_mul(self.page_size).and_then(|len| rest.get(..len));
        Page::new(id, bytes.ok_or(fault("is cut"))?)
    }
}

impl Meta {
    /// The meta page at an offset, if it is one.
    fn at(bytes: &[u8], at: usize) -> Option<Self> {
        let meta = slice(bytes, at.checked_add(HEADER)?, META + 8)?;
        let page_size = u32_at(meta, 8)? as usize;
        let valid = u32_at(meta, 0)? == MAGIC
            && u32_at(meta, 4)? == VERSION
            && u64_at(meta, META)? == checksum(&meta[..META])
            && page_size.is_power_of_two()
            && (at == 0 || at == page_size);
        let (root, transaction) = (u64_at(meta, 16)?, u64_at(meta, 48)?);
        valid.then_some(Self { page_size, root, transaction })
    }
}

impl<'a> Bucket<'a> {
    /// All it holds.
    pub fn elements(&self) -> Elements<'a> {
        let database = self.database;
        let page = match self.root {
            Root::Page(id) => database.page(id),
            Root::Inline(bytes) => Page::new(0, bytes),
        };
        let unread = database.bytes.len() / database.page_size;
        let (path, fault) = match page {
            Ok(page) => (Vec::from([(page, 0)]), None),
            Err(fault) => (Vec::new(), Some(fault)),
        };
        Elements { database, path, unread, room: database.bytes.len(), last: None, fault }
    }

    /// The bucket of a name inside this one.
    ///
    /// # Errors
    /// [`Fault`] when the pages on the way are damaged.
    pub fn bucket(&self, name: &[u8]) -> Result<Option<Bucket<'a>>, Fault> {
        for element in self.elements() {
            if let Element::Bucket(found, bucket) = element?
                && found == name
            {
                return Ok(Some(bucket));
            }
        }
        Ok(None)
    }

    /// Its pairs; buckets inside it are passed over.
    pub fn pairs(&self) -> impl Iterator<Item = Result<(&'a [u8], &'a [u8]), Fault>> + use<'a> {
        self.elements().filter_map(|element| match element {
            Ok(Element::Pair(key, value)) => Some(Ok((key, value))),
            Ok(Element::Bucket(..)) => None,
            Err(fault) => Some(Err(fault)),
        })
    }
}

impl<'a> Elements<'a> {
    fn step(&mut self) -> Result<Option<Element<'a>>, Fault> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        while let Some((page, next)) = self.path.last_mut() {
            let (page, at) = (*page, *next);
            *next += 1;
            if at == page.count {
                self.path.pop();
            } else if page.leaf {
                return self.element(&page, at).map(Some);
            } else {
                self.descend(&page, at)?;
            }
        }
        Ok(None)
    }

    fn descend(&mut self, page: &Page<'a>, at: usize) -> Result<(), Fault> {
        let child = page.child(at).ok_or(page.fault("has an element outside of it"))?;
        self.unread = self.unread.saturating_sub(1);
        if self.path.len() == MAX_DEPTH || self.unread == 0 {
            return Err(page.fault("is part of a tree without end"));
        }
        self.path.push((self.database.page(child)?, 0));
        Ok(())
    }

    fn element(&mut self, page: &Page<'a>, at: usize) -> Result<Element<'a>, Fault> {
        let (flags, key, value) =
            page.pair(at).ok_or(page.fault("has an element outside of it"))?;
        if self.last.is_some_and(|last| last >= key) {
            return Err(page.fault("has its keys out of order"));
        }
        self.last = Some(key);
        // Elements may lie about where they lie, so that one piece of the file is all of theirs.
        let rest = self.room.checked_sub(ELEMENT + key.len() + value.len());
        self.room = rest.ok_or(page.fault("holds more than the file has"))?;
        if flags & NESTED == 0 {
            return Ok(Element::Pair(key, value));
        }
        let (root, inline) = u64_at(value, 0)
            .zip(value.get(HEADER..))
            .ok_or(page.fault("has a bucket that is cut"))?;
        let root = if root == 0 { Root::Inline(inline) } else { Root::Page(root) };
        Ok(Element::Bucket(key, Bucket { database: self.database, root }))
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<Element<'a>, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            self.path.clear();
        }
        step.transpose()
    }
}

impl<'a> Page<'a> {
    fn new(id: u64, bytes: &'a [u8]) -> Result<Self, Fault> {
        let fault = |what| Fault { page: id, what };
        let (flags, count) = u16_at(bytes, 8).zip(u16_at(bytes, 10)).ok_or(fault("is cut"))?;
        let leaf = match flags {
            LEAF => true,
            BRANCH => false,
            _ => return Err(fault("is neither branch nor leaf")),
        };
        Ok(Self { id, leaf, count: usize::from(count), bytes })
    }

    fn fault(&self, what: &'static str) -> Fault {
        Fault { page: self.id, what }
    }

    fn child(&self, at: usize) -> Option<u64> {
        u64_at(self.bytes, HEADER + ELEMENT * at + 8)
    }

    /// Flags, key and value of a leaf's element.
    fn pair(&self, at: usize) -> Option<(u32, &'a [u8], &'a [u8])> {
        let entry = HEADER + ELEMENT * at;
        let word = |number: usize| u32_at(self.bytes, entry + 4 * number);
        let (key, value) = (word(2)? as usize, word(3)? as usize);
        let start = entry.checked_add(word(1)? as usize)?;
        let key = slice(self.bytes, start, key)?;
        let value = slice(self.bytes, start.checked_add(key.len())?, value)?;
        Some((word(0)?, key, value))
    }
}

fn slice(bytes: &[u8], start: usize, len: usize) -> Option<&[u8]> {
    bytes.get(start..start.checked_add(len)?)
}

fn chunk<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    chunk(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    chunk(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    chunk(bytes, at).map(u64::from_le_bytes)
}
