//! A table of `core/netplan` into the kernel: one transaction per change, without any process.

use knarr_netplan::nft::{
    Chain, Element, Field, Load, Rule, Sense, Side, Statement, Value, Verdict,
};
use knarr_netplan::sets::{Set, Shape};
use knarr_netplan::{Cidr, Delta, Family};

use crate::nfnetlink::{F_APPEND, F_CREATE, Messages, NetfilterError, Socket};

const SUBSYSTEM: u16 = 10;
/// `NFPROTO_INET`: both families in one table.
const INET: u8 = 1;
/// Elements of one message stay below what an attribute's length can say.
const MAX_LIST: usize = 60 << 10;
/// Clients that are remembered at the same time, in each family.
const MAX_CLIENTS: u32 = 1 << 18;

const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_ELEMENTS: u16 = 12;
const DELETE_ELEMENTS: u16 = 14;

const SET_INTERVAL: u32 = 4;
const SET_MAP: u32 = 8;
const SET_TIMEOUT: u32 = 0x10;
const SET_EVAL: u32 = 0x20;
const SET_CONCAT: u32 = 0x80;
/// What `nft` keeps with a set for itself: data's byte order (1), in four bytes, the host's (1).
const DATA_IN_HOST_ORDER: [u8; 6] = {
    let host = 1_u32.to_ne_bytes();
    [1, 4, host[0], host[1], host[2], host[3]]
};
const VERDICT_TYPE: u32 = 0xffff_ff00;

/// The first register of four bytes.
const R0: u32 = 8;
const VERDICT_REGISTER: u32 = 0;

/// The table of one instance.
#[derive(Debug)]
pub struct Table {
    name: String,
    socket: Socket,
}

impl Table {
    /// The table `knarr-INSTANCE` of the calling thread's network namespace; nothing is changed
    /// yet.
    ///
    /// # Errors
    /// [`NetfilterError::Socket`] where there is no netfilter, or no right to it.
    pub fn open(instance: &str) -> Result<Self, NetfilterError> {
        Ok(Self { name: format!("knarr-{instance}"), socket: Socket::open()? })
    }

    /// Replaces the whole table, whatever it was. Packets meet the old or the new one.
    ///
    /// # Errors
    /// [`NetfilterError`]; what was there stays, unless the answer got lost.
    pub fn replace(&mut self, everything: &Delta) -> Result<(), NetfilterError> {
        self.transact(|batch| {
            batch.table(NEW_TABLE, F_CREATE);
            batch.table(DELETE_TABLE, 0);
            batch.table(NEW_TABLE, F_CREATE);
            Set::all().for_each(|set| batch.set(set));
            batch.delta(everything);
        })
    }

    /// Changes the table.
    ///
    /// # Errors
    /// [`NetfilterError`]; nothing was changed, unless the answer got lost.
    pub fn change(&mut self, delta: &Delta) -> Result<(), NetfilterError> {
        if delta.is_empty() {
            return Ok(());
        }
        self.transact(|batch| batch.delta(delta))
    }

    /// Removes the table, if it is there.
    ///
    /// # Errors
    /// [`NetfilterError`].
    pub fn remove(&mut self) -> Result<(), NetfilterError> {
        self.transact(|batch| {
            batch.table(NEW_TABLE, F_CREATE);
            batch.table(DELETE_TABLE, 0);
        })
    }

    fn transact(&mut self, fill: impl FnOnce(&mut Batch<'_>)) -> Result<(), NetfilterError> {
        let mut batch = Batch { table: &self.name, out: Messages::default(), sets: 0 };
        batch.out.begin_batch(SUBSYSTEM);
        fill(&mut batch);
        batch.out.end_batch(SUBSYSTEM);
        let out = batch.out;
        self.socket.exchange(&out, |_| {})
    }
}

/// One transaction.
struct Batch<'a> {
    table: &'a str,
    out: Messages,
    sets: u32,
}

/// Flags and number of an `nft` type; its own numbers for the types, so that it can list tables.
fn type_number(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |number, field| {
        number << 6
            | match field {
                Field::Address(Family::V4) => 7,
                Field::Address(Family::V6) => 8,
                Field::Protocol => 12,
                Field::Port => 13,
                Field::Index => 19,
            }
    })
}

fn size(fields: &[Field]) -> u32 {
    fields.iter().map(|field| u32::try_from(field.size()).expect("4 or 16")).sum()
}

impl Batch<'_> {
    fn begin(&mut self, kind: u16, flags: u16) {
        self.out.begin(SUBSYSTEM << 8 | kind, flags, INET, 0);
    }

    fn table(&mut self, kind: u16, flags: u16) {
        self.begin(kind, flags);
        self.out.text(1, self.table);
        self.out.end();
    }

    fn set(&mut self, set: Set) {
        let row = set.row();
        let flags = match row.shape {
            Shape::Set => 0,
            Shape::Ranges => SET_INTERVAL | SET_CONCAT,
            Shape::Map | Shape::Verdicts => SET_MAP,
            Shape::Dynamic => SET_MAP | SET_TIMEOUT | SET_EVAL,
        };
        self.sets += 1;
        self.begin(NEW_SET, F_CREATE);
        let out = &mut self.out;
        out.text(1, self.table);
        out.text(2, set);
        out.number(3, flags);
        out.number(4, type_number(&row.key));
        out.number(5, size(&row.key));
        if row.shape == Shape::Verdicts {
            out.number(6, VERDICT_TYPE);
            out.number(7, 0);
        } else if !row.data.is_empty() {
            out.number(6, type_number(&row.data));
            out.number(7, size(&row.data));
        }
        out.nest(9, |desc| {
            if row.shape == Shape::Dynamic {
                desc.number(1, MAX_CLIENTS);
            }
            if row.shape == Shape::Ranges {
                desc.nest(2, |fields| {
                    for field in &row.key {
                        fields.nest(1, |one| one.number(1, length(*field)));
                    }
                });
            }
        });
        out.number(10, self.sets);
        if row.data == [Field::Index] {
            out.put(13, &DATA_IN_HOST_ORDER);
        }
        out.end();
    }

    fn delta(&mut self, delta: &Delta) {
        self.elements(DELETE_ELEMENTS, 0, &delta.remove);
        delta.chains.iter().for_each(|chain| self.chain(chain));
        self.elements(NEW_ELEMENTS, F_CREATE, &delta.add);
    }

    /// Elements, those of one set next to each other in as few messages as hold them.
    fn elements(&mut self, kind: u16, flags: u16, elements: &[Element]) {
        let mut rest = elements.iter().peekable();
        while let Some((first, _)) = rest.peek() {
            let set = first.set;
            self.begin(kind, flags);
            self.out.text(1, self.table);
            self.out.text(2, set);
            let list = self.out.open_nest(3);
            while let Some(element) = rest.next_if(|(key, _)| key.set == set) {
                self.out.nest(1, |out| put_element(out, element));
                if self.out.length() > MAX_LIST {
                    break;
                }
            }
            self.out.close_nest(list);
            self.out.end();
        }
    }

    fn chain(&mut self, chain: &Chain) {
        self.begin(NEW_CHAIN, F_CREATE);
        let out = &mut self.out;
        out.text(1, self.table);
        out.text(3, &chain.name);
        if let Some((purpose, hook, priority)) = chain.base {
            out.nest(4, |inner| {
                inner.number(1, hook.row().0);
                inner.number(2, priority.cast_unsigned());
            });
            out.text(7, purpose.name());
        }
        out.end();
        chain.rules.iter().for_each(|rule| self.rule(&chain.name, rule));
    }

    fn rule(&mut self, chain: &str, rule: &Rule) {
        self.begin(NEW_RULE, F_CREATE | F_APPEND);
        let out = &mut self.out;
        out.text(1, self.table);
        out.text(2, chain);
        out.nest(4, |list| rule.iter().for_each(|statement| put_statement(list, statement)));
        out.end();
    }
}

fn length(field: Field) -> u32 {
    u32::try_from(field.length()).expect("at most 16")
}

fn put_element(out: &mut Messages, (key, value): &Element) {
    let data = |out: &mut Messages, kind, bytes: &[u8]| out.nest(kind, |out| out.put(1, bytes));
    data(out, 1, &key.key);
    match value {
        Value::Member => {}
        Value::Data(bytes) => data(out, 2, bytes),
        Value::Verdict(verdict) => out.nest(2, |out| put_verdict(out, verdict)),
        Value::Until(last) => data(out, 10, last),
    }
}

fn put_verdict(out: &mut Messages, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Jump(chain) => (-3_i32, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
    };
    out.nest(2, |out| {
        out.number(1, code.cast_unsigned());
        chain.into_iter().for_each(|chain| out.text(2, chain));
    });
}

/// One expression of a rule.
fn expression(out: &mut Messages, name: &str, attributes: impl FnOnce(&mut Messages)) {
    out.nest(1, |out| {
        out.text(1, name);
        out.nest(2, attributes);
    });
}

fn meta(out: &mut Messages, key: u32, to: u32) {
    expression(out, "meta", |out| {
        out.number(2, key);
        out.number(1, to);
    });
}

/// What a packet has becomes the first register's content.
fn set_meta(out: &mut Messages, key: u32) {
    expression(out, "meta", |out| {
        out.number(2, key);
        out.number(3, R0);
    });
}

const META_PRIORITY: u32 = 2;
const META_MARK: u32 = 3;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;

fn payload(out: &mut Messages, (base, offset, length): (u32, u32, u32), to: u32) {
    expression(out, "payload", |out| {
        out.number(1, to);
        out.number(2, base);
        out.number(3, offset);
        out.number(4, length);
    });
}

fn address(family: Family, side: Side) -> (u32, u32, u32) {
    match (family, side) {
        (Family::V4, Side::Source) => (1, 12, 4),
        (Family::V4, Side::Destination) => (1, 16, 4),
        (Family::V6, Side::Source) => (1, 8, 16),
        (Family::V6, Side::Destination) => (1, 24, 16),
    }
}

#[derive(Clone, Copy)]
enum Compare {
    Equal = 0,
    Different = 1,
}

fn compare(out: &mut Messages, how: Compare, with: &[u8]) {
    expression(out, "cmp", |out| {
        out.number(1, R0);
        out.number(2, how as u32);
        out.nest(3, |out| out.put(1, with));
    });
}

/// `register = register & mask ^ xor`.
fn bitwise(out: &mut Messages, at: u32, mask: &[u8], xor: &[u8]) {
    expression(out, "bitwise", |out| {
        out.number(1, at);
        out.number(2, at);
        out.number(3, u32::try_from(mask.len()).expect("at most 16"));
        out.nest(4, |out| out.put(1, mask));
        out.nest(5, |out| out.put(1, xor));
    });
}

/// Loads a key into registers from `at` on; the register behind it.
fn load(out: &mut Messages, key: &[Load], mut at: u32) -> u32 {
    for one in key {
        match one {
            Load::Address(family, side) => payload(out, address(*family, *side), at),
            // A constant would do, but `nft` knows no type for one.
            Load::AnyAddress(family) => {
                let nothing = vec![0; one.field().size()];
                payload(out, address(*family, Side::Destination), at);
                bitwise(out, at, &nothing, &nothing);
            }
            Load::Protocol => meta(out, META_L4PROTO, at),
            Load::Port => payload(out, (2, 2, 2), at),
            Load::Random { count, base } => expression(out, "numgen", |out| {
                out.number(1, at);
                out.number(2, *count);
                out.number(3, 1);
                out.number(4, *base);
            }),
            Load::Noted => meta(out, META_PRIORITY, at),
        }
        at += size(&[one.field()]) / 4;
    }
    at
}

/// Looks the key at a register up; what is found goes to a register, if there is one.
fn lookup(out: &mut Messages, set: Set, from: u32, to: Option<u32>, sense: Sense) {
    expression(out, "lookup", |out| {
        out.text(1, set);
        out.number(2, from);
        to.into_iter().for_each(|to| out.number(3, to));
        if sense == Sense::IsNot {
            out.number(5, 1);
        }
    });
}

/// Translates the destination to the address and port at a register.
fn translate(out: &mut Messages, family: Family, at: u32) {
    let address = Field::Address(family);
    expression(out, "nat", |out| {
        out.number(1, 1);
        out.number(2, if family == Family::V4 { 2 } else { 10 });
        out.number(3, at);
        out.number(5, at + size(&[address]) / 4);
    });
}

#[derive(Clone, Copy)]
enum Write {
    Update = 1,
    Delete = 2,
}

/// Writes what is noted to a map, under the loaded key. Deleting needs no data, but the kernel
/// wants every write to a map to name some.
fn write(out: &mut Messages, how: Write, key: &[Load], set: Set, seconds: Option<u32>) {
    let noted = load(out, key, R0);
    load(out, &[Load::Noted], noted);
    expression(out, "dynset", |out| {
        out.text(1, set);
        out.number(3, how as u32);
        out.number(4, R0);
        out.number(5, noted);
        if let Some(seconds) = seconds {
            out.put(6, &(u64::from(seconds) * 1000).to_be_bytes());
        }
    });
}

fn put_statement(out: &mut Messages, statement: &Statement) {
    match statement {
        Statement::Family(family) => {
            meta(out, META_NFPROTO, R0);
            compare(out, Compare::Equal, &[if *family == Family::V4 { 2 } else { 10 }]);
        }
        Statement::NewConnection => connection(out, 0, 8),
        Statement::Translated => connection(out, 2, 1 << 5),
        Statement::LocalAddress(_, side) => local(out, *side),
        Statement::Range(side, sense, cidr) => range(out, *side, *sense, cidr),
        Statement::Member(key, sense, set) => {
            load(out, key, R0);
            lookup(out, *set, R0, None, *sense);
        }
        Statement::Dispatch(key, set) => {
            load(out, key, R0);
            lookup(out, *set, R0, Some(VERDICT_REGISTER), Sense::Is);
        }
        Statement::Marked(bits) => {
            meta(out, META_MARK, R0);
            bitwise(out, R0, &bits.to_ne_bytes(), &[0; 4]);
            compare(out, Compare::Different, &[0; 4]);
        }
        Statement::Mark(bits) => mark(out, !bits, *bits),
        Statement::Unmark(bits) => mark(out, u32::MAX, *bits),
        Statement::Translate(family, key, set) => {
            load(out, key, R0);
            lookup(out, *set, R0, Some(R0), Sense::Is);
            translate(out, *family, R0);
        }
        Statement::Note(key, set) => {
            load(out, key, R0);
            lookup(out, *set, R0, Some(R0), Sense::Is);
            set_meta(out, META_PRIORITY);
        }
        Statement::Remember(key, set, seconds) => {
            write(out, Write::Update, key, *set, Some(*seconds));
        }
        Statement::Forget(key, set) => write(out, Write::Delete, key, *set, None),
        Statement::Masquerade => expression(out, "masq", |out| out.number(1, 1 << 4)),
        Statement::Reset => {
            meta(out, META_L4PROTO, R0);
            compare(out, Compare::Equal, &[6]);
            expression(out, "reject", |out| {
                out.number(1, 1);
                out.put(2, &[0]);
            });
        }
        Statement::Reject => expression(out, "reject", |out| {
            out.number(1, 2);
            out.put(2, &[1]);
        }),
        Statement::Go(verdict) => expression(out, "immediate", |out| {
            out.number(1, VERDICT_REGISTER);
            out.nest(2, |out| put_verdict(out, verdict));
        }),
    }
}

/// Some of the bits of a connection's state (0) or status (2) are set.
fn connection(out: &mut Messages, key: u32, bits: u32) {
    expression(out, "ct", |out| {
        out.number(2, key);
        out.number(1, R0);
    });
    bitwise(out, R0, &bits.to_ne_bytes(), &[0; 4]);
    compare(out, Compare::Different, &[0; 4]);
}

fn local(out: &mut Messages, side: Side) {
    expression(out, "fib", |out| {
        out.number(1, R0);
        out.number(2, 3);
        out.number(3, if side == Side::Source { 1 } else { 2 });
    });
    // RTN_LOCAL
    compare(out, Compare::Equal, &2_u32.to_ne_bytes());
}

fn range(out: &mut Messages, side: Side, sense: Sense, cidr: &Cidr) {
    let octets = |address| match address {
        std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
        std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let (base, last) = (octets(cidr.network()), octets(cidr.last()));
    let mask: Vec<u8> = base.iter().zip(&last).map(|(first, last)| !(first ^ last)).collect();
    payload(out, address(cidr.family(), side), R0);
    bitwise(out, R0, &mask, &vec![0; mask.len()]);
    let how = if sense == Sense::Is { Compare::Equal } else { Compare::Different };
    compare(out, how, &base);
}

/// `mark = mark & mask ^ xor`.
fn mark(out: &mut Messages, mask: u32, xor: u32) {
    meta(out, META_MARK, R0);
    bitwise(out, R0, &mask.to_ne_bytes(), &xor.to_ne_bytes());
    set_meta(out, META_MARK);
}
