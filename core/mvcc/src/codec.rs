//! The bytes of commands and snapshot items: a version, a tag, then fields in order.
//!
//! Numbers are LEB128 varints, byte strings carry their length. Written by hand, because this
//! format outlives every library: a record of today must be readable by every later knarr.
//! Decoding copies, so that a decoded value never keeps the buffer of a whole log segment alive.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use bytes::Bytes;

use crate::check::MAX_TXN_DEPTH;
use crate::command::Command;
use crate::model::{
    Compare, CompareOp, CompareTarget, Event, KeyRange, KeyValue, LeaseId, Op, Order, OrderBy,
    Part, Query, RangeEnd, Revision, Txn,
};
use crate::settings::Change;
use crate::snapshot::{Item, Meta};
use crate::time::Mark;
use crate::version::Version;

/// The version this build writes, the first byte of everything.
const VERSION: u8 = 1;

/// Room for what is small.
const ROOM: usize = 32;

/// Why bytes are not a command or an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodecError {
    /// Written by a knarr this one does not understand; its version.
    Version(u8),
    /// They end too early.
    Truncated,
    /// They go on after the end.
    Trailing,
    /// A tag or a number has no meaning.
    Invalid,
    /// Transactions are nested deeper than [`MAX_TXN_DEPTH`].
    TooDeep,
}

impl Command {
    /// The command as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.room());
        out.push(VERSION);
        match self {
            Self::Txn(txn) => {
                out.push(0);
                put_txn(&mut out, txn);
            }
            Self::Compact { revision } => {
                out.push(1);
                put_number(&mut out, revision.0);
            }
            Self::LeaseGrant { id, ttl_secs, now } => {
                out.push(2);
                put_numbers(&mut out, &[id.0 as u64, *ttl_secs as u64, *now]);
            }
            Self::LeaseRevoke { id } => {
                out.push(3);
                put_number(&mut out, id.0 as u64);
            }
            Self::Settings(change) => {
                out.push(4);
                put_number(&mut out, change.expect);
                put_list(&mut out, &change.entries, put_setting);
            }
            Self::Under { settings, command } => {
                out.push(5);
                put_number(&mut out, *settings);
                put_bytes(&mut out, &command.encode());
            }
            Self::Time { wall_ms } => {
                out.push(6);
                put_number(&mut out, *wall_ms);
            }
        }
        out
    }

    /// Room for its bytes, most of the time.
    fn room(&self) -> usize {
        match self {
            Self::Txn(txn) => {
                ROOM + txn.success.iter().chain(&txn.failure).map(room).sum::<usize>()
            }
            Self::Under { command, .. } => ROOM + command.room(),
            _ => ROOM,
        }
    }

    /// The command of these bytes.
    ///
    /// # Errors
    /// [`CodecError`]; no input panics or allocates more than a small multiple of its length.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut reader = Reader::new(bytes)?;
        let command = match reader.byte()? {
            0 => Self::Txn(reader.txn(1)?),
            1 => Self::Compact { revision: reader.revision()? },
            2 => Self::LeaseGrant {
                id: reader.lease()?,
                ttl_secs: reader.number()? as i64,
                now: reader.number()?,
            },
            3 => Self::LeaseRevoke { id: reader.lease()? },
            4 => Self::Settings(Change {
                expect: reader.number()?,
                entries: reader.list(Reader::setting)?,
            }),
            5 => reader.under()?,
            6 => Self::Time { wall_ms: reader.number()? },
            _ => return Err(CodecError::Invalid),
        };
        reader.finish(command)
    }
}

impl Item {
    /// The item as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode_to(&mut out);
        out
    }

    /// Adds the item's bytes to others.
    pub fn encode_to(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        match self {
            Self::Meta(m) => {
                out.push(0);
                put_numbers(out, &[m.index, m.revision.0, m.compacted.0, m.floor.0]);
            }
            Self::Lease { id, ttl_secs } => {
                out.push(1);
                put_numbers(out, &[id.0 as u64, *ttl_secs as u64]);
            }
            Self::Base(version) => {
                out.push(2);
                put_kv(out, &version.parts());
            }
            Self::Change { new: Some(kv), .. } => {
                out.push(3);
                put_kv(out, &Parts::of(kv));
            }
            Self::Change { revision, key, new: None } => {
                out.push(4);
                put_number(out, revision.0);
                put_bytes(out, key);
            }
            Self::Settings { version } => {
                out.push(5);
                put_number(out, *version);
            }
            Self::Setting { key, value } => {
                out.push(6);
                put_bytes(out, key);
                put_bytes(out, value);
            }
            Self::Mark(mark) => {
                out.push(7);
                put_numbers(out, &[mark.revision.0, mark.wall_ms]);
            }
            Self::Past(event) => {
                let (new, old) = (event.new.as_ref().map(Parts::of), event.old.as_ref());
                put_past(out, event.revision, &event.key, new, old.map(Parts::of));
            }
        }
    }

    /// The item of these bytes.
    ///
    /// # Errors
    /// [`CodecError`], as for [`Command::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut reader = Reader::new(bytes)?;
        let item = match reader.byte()? {
            0 => Self::Meta(reader.meta()?),
            1 => Self::Lease { id: reader.lease()?, ttl_secs: reader.number()? as i64 },
            2 => Self::Base(reader.version()?),
            3 => {
                let kv = reader.kv()?;
                Self::Change { revision: kv.mod_revision, key: kv.key.clone(), new: Some(kv) }
            }
            4 => Self::Change { revision: reader.revision()?, key: reader.bytes()?, new: None },
            5 => Self::Settings { version: reader.number()? },
            6 => Self::Setting { key: reader.bytes()?, value: reader.bytes()? },
            7 => Self::Mark(Mark { revision: reader.revision()?, wall_ms: reader.number()? }),
            8 => Self::Past(Event {
                revision: reader.revision()?,
                key: reader.bytes()?,
                new: reader.option(Reader::kv)?,
                old: reader.option(Reader::kv)?,
            }),
            _ => return Err(CodecError::Invalid),
        };
        reader.finish(item)
    }
}

fn room(op: &Op) -> usize {
    match op {
        Op::Put { key, value, .. } => ROOM + key.len() + value.len(),
        Op::Amend { key, value, .. } => ROOM + key.len() + value.as_ref().map_or(0, Bytes::len),
        _ => 2 * ROOM,
    }
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_numbers(out: &mut Vec<u8>, numbers: &[u64]) {
    numbers.iter().for_each(|&number| put_number(out, number));
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// What is written of a version: key, value, and the revision of its creation, its own, its number
/// and its lease.
pub(crate) struct Parts<'a>(pub(crate) &'a [u8], pub(crate) &'a [u8], pub(crate) [u64; 4]);

impl<'a> Parts<'a> {
    fn of(kv: &'a KeyValue) -> Self {
        let numbers = [kv.create_revision.0, kv.mod_revision.0, kv.version, kv.lease.0 as u64];
        Self(&kv.key, &kv.value, numbers)
    }
}

fn put_kv(out: &mut Vec<u8>, Parts(key, value, numbers): &Parts<'_>) {
    put_bytes(out, key);
    put_bytes(out, value);
    put_numbers(out, numbers);
}

/// Adds what follows the format's version in an [`Item::Past`].
fn put_past(
    out: &mut Vec<u8>,
    revision: Revision,
    key: &[u8],
    new: Option<Parts<'_>>,
    old: Option<Parts<'_>>,
) {
    out.push(8);
    put_number(out, revision.0);
    put_bytes(out, key);
    put_option(out, new.as_ref(), put_kv);
    put_option(out, old.as_ref(), put_kv);
}

/// Adds the bytes of an [`Item::Past`].
pub(crate) fn encode_past(
    out: &mut Vec<u8>,
    revision: Revision,
    new: &Version,
    old: Option<&Version>,
) {
    out.push(VERSION);
    let live = new.is_live().then(|| new.parts());
    put_past(out, revision, new.key(), live, old.map(Version::parts));
}

fn put_range(out: &mut Vec<u8>, range: &KeyRange) {
    put_bytes(out, &range.start);
    match &range.end {
        RangeEnd::Single => out.push(0),
        RangeEnd::Before(end) => {
            out.push(1);
            put_bytes(out, end);
        }
        RangeEnd::Unbounded => out.push(2),
    }
}

fn put_compare(out: &mut Vec<u8>, compare: &Compare) {
    put_range(out, &compare.range);
    out.push(match compare.op {
        CompareOp::Equal => 0,
        CompareOp::NotEqual => 1,
        CompareOp::Greater => 2,
        CompareOp::Less => 3,
    });
    let (tag, number) = match &compare.target {
        CompareTarget::Value(value) => {
            out.push(3);
            return put_bytes(out, value);
        }
        CompareTarget::Version(n) => (0, *n),
        CompareTarget::Create(at) => (1, at.0),
        CompareTarget::Mod(at) => (2, at.0),
        CompareTarget::Lease(id) => (4, id.0 as u64),
    };
    out.push(tag);
    put_number(out, number);
}

fn put_op(out: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Put { key, value, lease } => {
            out.push(0);
            put_bytes(out, key);
            put_bytes(out, value);
            put_number(out, lease.0 as u64);
        }
        Op::Delete { range } => {
            out.push(1);
            put_range(out, range);
        }
        // The plain one is shorter, and older.
        Op::Range(query) if *query == plain(query.range.clone(), query.limit) => {
            out.push(2);
            put_range(out, &query.range);
            put_number(out, query.limit as u64);
        }
        Op::Range(query) => {
            out.push(4);
            put_query(out, query);
        }
        Op::Amend { key, value, lease } => {
            out.push(5);
            put_bytes(out, key);
            put_option(out, value.as_ref(), |out, value| put_bytes(out, value));
            put_option(out, lease.as_ref(), |out, lease| put_number(out, lease.0 as u64));
        }
        Op::Txn(txn) => {
            out.push(3);
            put_txn(out, txn);
        }
    }
}

fn plain(range: KeyRange, limit: usize) -> Query {
    Query { limit, ..Query::of(range) }
}

const ORDERS: [OrderBy; 5] =
    [OrderBy::Key, OrderBy::Version, OrderBy::Create, OrderBy::Mod, OrderBy::Value];
const PARTS: [Part; 3] = [Part::Whole, Part::Keys, Part::Count];

/// The number of a word: its place in the table, which only grows at its end.
fn place<T: PartialEq>(table: &[T], word: &T) -> u8 {
    table.iter().position(|entry| entry == word).map_or(u8::MAX, |at| at as u8)
}

fn put_query(out: &mut Vec<u8>, query: &Query) {
    put_range(out, &query.range);
    let [(a, b), (c, d)] = [query.modified, query.created];
    put_numbers(out, &[query.at.0, query.limit as u64, a.0, b.0, c.0, d.0]);
    put_option(out, query.order.as_ref(), |out, order| {
        out.extend([place(&ORDERS, &order.by), u8::from(order.descending)]);
    });
    out.push(place(&PARTS, &query.part));
}

fn put_option<T>(out: &mut Vec<u8>, option: Option<&T>, put: fn(&mut Vec<u8>, &T)) {
    out.push(u8::from(option.is_some()));
    if let Some(value) = option {
        put(out, value);
    }
}

fn put_setting(out: &mut Vec<u8>, (key, value): &(Bytes, Option<Bytes>)) {
    put_bytes(out, key);
    put_option(out, value.as_ref(), |out, value| put_bytes(out, value));
}

fn put_list<T>(out: &mut Vec<u8>, list: &[T], put: fn(&mut Vec<u8>, &T)) {
    put_number(out, list.len() as u64);
    list.iter().for_each(|entry| put(out, entry));
}

fn put_txn(out: &mut Vec<u8>, txn: &Txn) {
    put_list(out, &txn.compare, put_compare);
    put_list(out, &txn.success, put_op);
    put_list(out, &txn.failure, put_op);
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, CodecError> {
        let mut reader = Self(bytes);
        match reader.byte()? {
            VERSION => Ok(reader),
            other => Err(CodecError::Version(other)),
        }
    }

    fn finish<T>(self, value: T) -> Result<T, CodecError> {
        if self.0.is_empty() { Ok(value) } else { Err(CodecError::Trailing) }
    }

    fn byte(&mut self) -> Result<u8, CodecError> {
        let (&first, rest) = self.0.split_first().ok_or(CodecError::Truncated)?;
        self.0 = rest;
        Ok(first)
    }

    fn number(&mut self) -> Result<u64, CodecError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(CodecError::Invalid);
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(CodecError::Invalid)
    }

    fn revision(&mut self) -> Result<Revision, CodecError> {
        self.number().map(Revision)
    }

    fn lease(&mut self) -> Result<LeaseId, CodecError> {
        self.number().map(|id| LeaseId(id as i64))
    }

    fn bytes(&mut self) -> Result<Bytes, CodecError> {
        self.slice().map(Bytes::copy_from_slice)
    }

    fn slice(&mut self) -> Result<&'a [u8], CodecError> {
        let len = usize::try_from(self.number()?).map_err(|_| CodecError::Truncated)?;
        let (head, rest) = self.0.split_at_checked(len).ok_or(CodecError::Truncated)?;
        self.0 = rest;
        Ok(head)
    }

    fn flag(&mut self) -> Result<bool, CodecError> {
        self.word(&[false, true])
    }

    /// The word whose number comes next.
    fn word<T: Copy>(&mut self, table: &[T]) -> Result<T, CodecError> {
        table.get(usize::from(self.byte()?)).copied().ok_or(CodecError::Invalid)
    }

    fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, CodecError>,
    ) -> Result<Option<T>, CodecError> {
        Ok(if self.flag()? { Some(read(self)?) } else { None })
    }

    fn setting(&mut self) -> Result<(Bytes, Option<Bytes>), CodecError> {
        Ok((self.bytes()?, self.option(Self::bytes)?))
    }

    fn under(&mut self) -> Result<Command, CodecError> {
        let settings = self.number()?;
        match Command::decode(self.slice()?)? {
            Command::Under { .. } => Err(CodecError::Invalid),
            command => Ok(Command::Under { settings, command: Box::new(command) }),
        }
    }

    fn count(&mut self) -> Result<usize, CodecError> {
        usize::try_from(self.number()?).map_err(|_| CodecError::Invalid)
    }

    fn query(&mut self) -> Result<Query, CodecError> {
        Ok(Query {
            range: self.range()?,
            at: self.revision()?,
            limit: self.count()?,
            modified: (self.revision()?, self.revision()?),
            created: (self.revision()?, self.revision()?),
            order: self.option(|r| Ok(Order { by: r.word(&ORDERS)?, descending: r.flag()? }))?,
            part: self.word(&PARTS)?,
        })
    }

    fn list<T>(
        &mut self,
        mut read: impl FnMut(&mut Self) -> Result<T, CodecError>,
    ) -> Result<Vec<T>, CodecError> {
        // Nothing is allocated ahead, and every entry takes at least a byte: a lie ends soon.
        (0..self.number()?).map(|_| read(self)).collect()
    }

    fn meta(&mut self) -> Result<Meta, CodecError> {
        Ok(Meta {
            index: self.number()?,
            revision: self.revision()?,
            compacted: self.revision()?,
            floor: self.revision()?,
        })
    }

    fn kv(&mut self) -> Result<KeyValue, CodecError> {
        Ok(KeyValue {
            key: self.bytes()?,
            value: self.bytes()?,
            create_revision: self.revision()?,
            mod_revision: self.revision()?,
            version: self.number()?,
            lease: self.lease()?,
        })
    }

    /// A key-value in the one place where it is to stay.
    fn version(&mut self) -> Result<Version, CodecError> {
        let (key, value) = (self.slice()?, self.slice()?);
        let numbers = [self.number()?, self.number()?, self.number()?, self.number()?];
        Ok(Version::from_parts(&Parts(key, value, numbers)))
    }

    fn range(&mut self) -> Result<KeyRange, CodecError> {
        let start = self.bytes()?;
        let end = match self.byte()? {
            0 => RangeEnd::Single,
            1 => RangeEnd::Before(self.bytes()?),
            2 => RangeEnd::Unbounded,
            _ => return Err(CodecError::Invalid),
        };
        Ok(KeyRange { start, end })
    }

    fn compare(&mut self) -> Result<Compare, CodecError> {
        let range = self.range()?;
        let op = match self.byte()? {
            0 => CompareOp::Equal,
            1 => CompareOp::NotEqual,
            2 => CompareOp::Greater,
            3 => CompareOp::Less,
            _ => return Err(CodecError::Invalid),
        };
        let target = match self.byte()? {
            0 => CompareTarget::Version(self.number()?),
            1 => CompareTarget::Create(self.revision()?),
            2 => CompareTarget::Mod(self.revision()?),
            3 => CompareTarget::Value(self.bytes()?),
            4 => CompareTarget::Lease(self.lease()?),
            _ => return Err(CodecError::Invalid),
        };
        Ok(Compare { range, op, target })
    }

    fn op(&mut self, depth: usize) -> Result<Op, CodecError> {
        Ok(match self.byte()? {
            0 => Op::Put { key: self.bytes()?, value: self.bytes()?, lease: self.lease()? },
            1 => Op::Delete { range: self.range()? },
            2 => Op::Range(plain(self.range()?, self.count()?)),
            3 => Op::Txn(self.txn(depth + 1)?),
            4 => Op::Range(self.query()?),
            5 => Op::Amend {
                key: self.bytes()?,
                value: self.option(Self::bytes)?,
                lease: self.option(Self::lease)?,
            },
            _ => return Err(CodecError::Invalid),
        })
    }

    fn txn(&mut self, depth: usize) -> Result<Txn, CodecError> {
        if depth > MAX_TXN_DEPTH {
            return Err(CodecError::TooDeep);
        }
        Ok(Txn {
            compare: self.list(Self::compare)?,
            success: self.list(|reader| reader.op(depth))?,
            failure: self.list(|reader| reader.op(depth))?,
        })
    }
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(v) => write!(f, "written in format {v}, this build reads {VERSION}"),
            Self::Truncated => f.write_str("the bytes end too early"),
            Self::Trailing => f.write_str("the bytes go on after the end"),
            Self::Invalid => f.write_str("a tag or number has no meaning"),
            Self::TooDeep => f.write_str("transactions are nested too deep"),
        }
    }
}

impl core::error::Error for CodecError {}
