//! Messages as they go over the wire (RFC 1035, RFC 6891).

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::kind;
use crate::lookup::Record;

const HEADER: usize = 12;
const MAX_NAME: usize = 255;
const MAX_LABEL: usize = 63;
/// What a client without EDNS takes by UDP.
const PLAIN_UDP: u16 = 512;
/// What fits into a packet that nobody fragments (DNS flag day 2020).
const MAX_UDP: u16 = 1232;
const IN: u16 = 1;
const ANY_CLASS: u16 = 255;
/// A name that stands where the question's does.
const QUESTION: [u8; 2] = [0xc0, HEADER as u8];

/// How a query ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// It was answered, if only by "no such data".
    NoError = 0,
    /// It cannot be understood.
    FormErr = 1,
    /// Something went wrong here, or at whom was asked.
    ServFail = 2,
    /// There is no such name.
    NxDomain = 3,
    /// That kind of query is not known here.
    NotImp = 4,
    /// It is not answered on purpose.
    Refused = 5,
}

/// A message that is no query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Nothing to answer to: too short, or an answer itself.
    Silent,
    /// To be answered with this code; the header's id and flags are in the message.
    Refuse(Code),
}

impl core::error::Error for Malformed {}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a DNS query")
    }
}

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The client's number for it.
    pub id: u16,
    /// The name in lower case, without the last dot.
    pub name: String,
    /// The record type that is asked for.
    pub kind: u16,
    /// How long an answer by UDP may be, in bytes.
    pub udp_limit: usize,
    /// Whether the client speaks EDNS.
    pub edns: bool,
    flags: u16,
    /// The question section as it came: names are answered in the case they were asked in.
    question: Vec<u8>,
}

fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]))
}

impl Query {
    /// Reads a message.
    ///
    /// # Errors
    /// [`Malformed`] says whether and how to answer.
    pub fn parse(message: &[u8]) -> Result<Self, Malformed> {
        let header = |at| u16_at(message, at).filter(|_| message.len() >= HEADER);
        let (id, flags) = (header(0).ok_or(Malformed::Silent)?, header(2).unwrap_or(0));
        if flags & 0x8000 != 0 {
            return Err(Malformed::Silent);
        }
        if flags & 0x7800 != 0 {
            return Err(Malformed::Refuse(Code::NotImp));
        }
        let bad = Malformed::Refuse(Code::FormErr);
        if header(4) != Some(1) || header(6) != Some(0) || header(8) != Some(0) {
            return Err(bad);
        }
        let (name, at) = read_question_name(message).ok_or(bad)?;
        let kind = u16_at(message, at).ok_or(bad)?;
        let class = u16_at(message, at + 2).ok_or(bad)?;
        if !matches!(class, IN | ANY_CLASS) {
            return Err(Malformed::Refuse(Code::Refused));
        }
        let question = message.get(HEADER..at + 4).ok_or(bad)?.to_vec();
        let extra = header(10).unwrap_or(0) > 0;
        let size = edns_size(message, at + 4).filter(|_| extra);
        let limit = size.unwrap_or(PLAIN_UDP).clamp(PLAIN_UDP, MAX_UDP);
        let (udp_limit, edns) = (usize::from(limit), size.is_some());
        Ok(Self { id, name, kind, udp_limit, edns, flags, question })
    }

    /// A query of our own.
    pub fn new(id: u16, name: &str, kind: u16) -> Self {
        let mut question = Vec::new();
        put_name(&mut question, name);
        question.extend(kind.to_be_bytes());
        question.extend(IN.to_be_bytes());
        let name = name.to_ascii_lowercase();
        Self { id, name, kind, udp_limit: MAX_UDP.into(), edns: true, flags: 0x0100, question }
    }

    /// As it goes to another server: with recursion wanted, with EDNS.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + self.question.len() + 11);
        // The client's wishes to be spared validation (CD) and to know of it (AD) go along.
        let flags = 0x0100 | self.flags & 0x0030;
        for word in [self.id, flags, 1, 0, 0, 1] {
            out.extend(word.to_be_bytes());
        }
        out.extend_from_slice(&self.question);
        put_opt(&mut out);
        out
    }

    /// What tells this question from others, apart from its number and the case of its letters.
    pub fn key(&self) -> (&str, u16, u16) {
        (&self.name, self.kind, self.flags & 0x0010)
    }

    /// Whether a message answers this question.
    pub fn is_answered_by(&self, message: &[u8]) -> bool {
        let end = HEADER + self.question.len();
        u16_at(message, 0) == Some(self.id)
            && u16_at(message, 2).is_some_and(|flags| flags & 0x8000 != 0)
            && u16_at(message, 4) == Some(1)
            && message.get(HEADER..end).is_some_and(|q| q.eq_ignore_ascii_case(&self.question))
    }

    /// Another server's answer to the same question, made ours: our number, our question.
    pub fn adopt(&self, message: &[u8]) -> Vec<u8> {
        let mut out = message.to_vec();
        out[..2].copy_from_slice(&self.id.to_be_bytes());
        let end = HEADER + self.question.len();
        if let Some(question) = out.get_mut(HEADER..end) {
            question.copy_from_slice(&self.question);
        }
        out
    }
}

/// Size of UDP payload in an OPT record, which queries have right behind the question.
fn edns_size(message: &[u8], at: usize) -> Option<u16> {
    let opt = message.get(at) == Some(&0) && u16_at(message, at + 1) == Some(kind::OPT);
    u16_at(message, at + 3).filter(|_| opt)
}

/// The name of a question, in lower case, and where it ends. Questions are not compressed.
fn read_question_name(message: &[u8]) -> Option<(String, usize)> {
    let mut name = String::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*message.get(at)?);
        if length == 0 {
            return Some((name, at + 1));
        }
        let label = message.get(at + 1..at + 1 + length)?;
        at += 1 + length;
        if length > MAX_LABEL || at - HEADER >= MAX_NAME {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        // A dot or another odd byte in a label cannot be one of ours; it must only stay different.
        name.extend(label.iter().map(|byte| match byte {
            b'.' | 0..=b' ' | 127.. => '\u{fffd}',
            byte => char::from(byte.to_ascii_lowercase()),
        }));
    }
}

fn put_name(out: &mut Vec<u8>, name: &str) {
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let bytes = &label.as_bytes()[..label.len().min(MAX_LABEL)];
        out.push(bytes.len() as u8);
        out.extend_from_slice(bytes);
    }
    out.push(0);
}

fn put_opt(out: &mut Vec<u8>) {
    out.push(0);
    out.extend(kind::OPT.to_be_bytes());
    out.extend(MAX_UDP.to_be_bytes());
    out.extend([0; 6]);
}

/// An answer that is being written.
#[derive(Debug)]
pub struct Reply<'q> {
    query: &'q Query,
    out: Vec<u8>,
    counts: [u16; 3],
    limit: usize,
    truncated: bool,
}

/// The parts of an answer, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Section {
    Answer,
    Authority,
    Additional,
}

impl<'q> Reply<'q> {
    /// An answer of at most `limit` bytes.
    pub fn new(query: &'q Query, code: Code, limit: usize) -> Self {
        let mut out = Vec::with_capacity(128);
        // An answer, with authority; recursion is on offer.
        let flags = 0x8480 | query.flags & 0x0110 | u16::from(code as u8);
        for word in [query.id, flags, 1, 0, 0, 0] {
            out.extend(word.to_be_bytes());
        }
        out.extend_from_slice(&query.question);
        Self { query, out, counts: [0; 3], limit, truncated: false }
    }

    /// The answer to a message that is no good query; none where there is nothing to answer.
    pub fn refusal(message: &[u8], why: Malformed) -> Option<Vec<u8>> {
        let Malformed::Refuse(code) = why else { return None };
        let mut out = message.get(..HEADER)?.to_vec();
        out[2] = out[2] & 0x79 | 0x80;
        out[3] = code as u8;
        out[4..].fill(0);
        Some(out)
    }

    /// Adds a record to the answer; `owner` is the question's name when it is `None`.
    pub fn answer(&mut self, owner: Option<&str>, record: &Record, ttl: u32) {
        self.put(Section::Answer, owner, record, ttl);
    }

    /// Adds a record of those that vouch for the answer.
    pub fn authority(&mut self, owner: &str, record: &Record, ttl: u32) {
        self.put(Section::Authority, Some(owner), record, ttl);
    }

    /// Adds a record that may be of use; left out where there is no room.
    pub fn additional(&mut self, owner: &str, record: &Record, ttl: u32) {
        self.put(Section::Additional, Some(owner), record, ttl);
    }

    fn put(&mut self, section: Section, owner: Option<&str>, record: &Record, ttl: u32) {
        if self.truncated {
            return;
        }
        let before = self.out.len();
        match owner {
            None => self.out.extend(QUESTION),
            Some(owner) => put_name(&mut self.out, owner),
        }
        self.out.extend(record.kind().to_be_bytes());
        self.out.extend(IN.to_be_bytes());
        self.out.extend(ttl.to_be_bytes());
        let length_at = self.out.len();
        self.out.extend([0; 2]);
        put_data(&mut self.out, record);
        let length = (self.out.len() - length_at - 2) as u16;
        self.out[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
        let room = self.limit - if self.query.edns { 11 } else { 0 };
        if self.out.len() > room {
            self.out.truncate(before);
            self.truncated = section == Section::Answer;
            return;
        }
        self.counts[section as usize] += 1;
    }

    /// The message.
    pub fn finish(mut self) -> Vec<u8> {
        if self.query.edns {
            put_opt(&mut self.out);
            self.counts[Section::Additional as usize] += 1;
        }
        for (at, count) in [6, 8, 10].into_iter().zip(self.counts) {
            self.out[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
        if self.truncated {
            self.out[2] |= 0x02;
        }
        self.out
    }
}

fn put_data(out: &mut Vec<u8>, record: &Record) {
    match record {
        Record::Address(IpAddr::V4(address)) => out.extend(address.octets()),
        Record::Address(IpAddr::V6(address)) => out.extend(address.octets()),
        Record::Alias(name) | Record::Pointer(name) | Record::NameServer(name) => {
            put_name(out, name);
        }
        Record::Text(text) => {
            let text = &text.as_bytes()[..text.len().min(255)];
            out.push(text.len() as u8);
            out.extend_from_slice(text);
        }
        Record::Service { weight, port, target } => {
            for number in [0, *weight, *port] {
                out.extend(number.to_be_bytes());
            }
            put_name(out, target);
        }
        Record::Authority { domain, serial, least } => {
            for prefix in ["ns.dns", "hostmaster"] {
                let mut name = String::from(prefix);
                name.push('.');
                name.push_str(domain);
                put_name(out, &name);
            }
            for number in [*serial, 7200, 1800, 86_400, *least] {
                out.extend(number.to_be_bytes());
            }
        }
    }
}

/// Behind a name that may be compressed.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            0xc0.. => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

/// One record of somebody's answer, by its place.
struct Place {
    kind: u16,
    ttl_at: usize,
    data: core::ops::Range<usize>,
}

/// The records of a message, in order, as far as they can be read.
fn records(message: &[u8]) -> impl Iterator<Item = Place> {
    let count = |at| usize::from(u16_at(message, at).unwrap_or(0));
    let total = count(6) + count(8) + count(10);
    let mut at = (0..count(4)).try_fold(HEADER, |at, _| Some(skip_name(message, at)? + 4));
    (0..total).map_while(move |_| {
        let head = skip_name(message, at?)?;
        let length = usize::from(u16_at(message, head + 8)?);
        let data = head + 10..head + 10 + length;
        message.get(data.clone())?;
        at = Some(data.end);
        Some(Place { kind: u16_at(message, head)?, ttl_at: head + 4, data })
    })
}

/// The addresses that somebody's answer has, whatever names it went through.
pub fn addresses_in(message: &[u8]) -> Vec<IpAddr> {
    let answers = usize::from(u16_at(message, 6).unwrap_or(0));
    let found = records(message).take(answers).filter_map(|place| {
        let data = &message[place.data];
        match place.kind {
            kind::A => Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?))),
            kind::AAAA => Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?))),
            _ => None,
        }
    });
    found.collect()
}

fn ttl_of(message: &[u8], place: &Place) -> u32 {
    let bytes = message.get(place.ttl_at..place.ttl_at + 4);
    let ttl = bytes.and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_be_bytes);
    // RFC 2308: a record that says "nothing here" lives no longer than its last number.
    let least = match place.kind {
        kind::SOA => message.get(place.data.end.saturating_sub(4)..place.data.end),
        _ => None,
    };
    let least = least.and_then(|bytes| bytes.try_into().ok()).map_or(ttl, u32::from_be_bytes);
    ttl.min(least)
}

/// How long somebody's answer is good for, in seconds; `None` when nothing in it says so.
pub fn least_ttl(message: &[u8]) -> Option<u32> {
    let lasting = records(message).filter(|place| place.kind != kind::OPT);
    lasting.map(|place| ttl_of(message, &place)).min()
}

/// Takes `age` seconds off every record's life.
pub fn set_ttls(message: &mut [u8], age: u32) {
    let places: Vec<Place> = records(message).filter(|place| place.kind != kind::OPT).collect();
    for place in places {
        let left = ttl_of(message, &place).saturating_sub(age);
        if let Some(bytes) = message.get_mut(place.ttl_at..place.ttl_at + 4) {
            bytes.copy_from_slice(&left.to_be_bytes());
        }
    }
}
