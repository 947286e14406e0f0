//! The `:authority` of HTTP/2 as Go's clients of etcd write it, which is not always one: a whole
//! URL (`etcdctl --cluster`), the path of a socket, a list of endpoints. The HTTP library ends such
//! a stream as malformed before anybody is asked; etcd never looks at it, and neither do we.
//!
//! So the first request of a connection has it replaced by as many letters. All later ones refer to
//! that one by its place in the table of header fields, which is of the same size on both sides as
//! the length is the same. (Refused: reading and writing all header fields, for the sake of one.)

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// Length, kind, flags, stream.
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Where `:authority` stands in the table that never changes.
const AUTHORITY: usize = 1;
/// The most that is held back to see a whole frame.
const MOST_HELD: usize = 64 << 10;

/// The codes of the letters that may be met: how many bits, the first, how many follow on it.
const HUFFMAN: &[(u32, u32, u32)] = &[
    (5, 0x0, 10),
    (6, 0x14, 26),
    (7, 0x5c, 32),
    (8, 0xf8, 6),
    (10, 0x3f8, 5),
    (11, 0x7fa, 3),
    (12, 0xffa, 2),
    (13, 0x1ff8, 6),
    (14, 0x3ffc, 2),
    (15, 0x7ffc, 3),
];

/// What a client sends after the preface, its first request with an authority that is one.
#[derive(Debug)]
pub(crate) struct Mended<R> {
    read: R,
    /// The first request has passed.
    done: bool,
    /// Read, and not yet seen as a whole.
    held: Vec<u8>,
    /// To be handed on, from where on.
    ready: (Vec<u8>, usize),
}

impl<R> Mended<R> {
    pub(crate) fn new(read: R) -> Self {
        Self { read, done: false, held: Vec::new(), ready: (Vec::new(), 0) }
    }

    /// Takes up more bytes, and makes ready what is whole.
    fn take(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
        while !self.done && self.held.len() >= FRAME_HEADER {
            let size = FRAME_HEADER + length(&self.held);
            if self.held.len() < size.min(MOST_HELD) {
                return;
            }
            self.done = self.held[3] == HEADERS || size > MOST_HELD;
            let frame: Vec<u8> = self.held.drain(..size.min(self.held.len())).collect();
            self.ready.0.extend(mend(&frame).unwrap_or(frame));
        }
        if self.done {
            self.ready.0.append(&mut self.held);
        }
    }
}

/// What a frame says its payload is long.
fn length(frame: &[u8]) -> usize {
    usize::from(frame[0]) << 16 | usize::from(frame[1]) << 8 | usize::from(frame[2])
}

/// A frame of header fields with another authority; none, if there is no need or no way.
fn mend(frame: &[u8]) -> Option<Vec<u8>> {
    let flags = frame[4];
    let whole = frame.len() == FRAME_HEADER + length(frame);
    if !whole || frame[3] != HEADERS || flags & END_HEADERS == 0 {
        return None;
    }
    let (mut at, mut end) = (FRAME_HEADER, frame.len());
    if flags & PADDED != 0 {
        end = end.checked_sub(usize::from(*frame.get(at)?))?;
        at += 1;
    }
    if flags & PRIORITY != 0 {
        at += 5;
    }
    let block = frame.get(at..end)?;
    let (value, letters) = authority(block)?;
    let mut mended = frame[..at + value.start].to_vec();
    number(letters, &mut mended);
    mended.resize(mended.len() + letters, b'x');
    mended.extend_from_slice(&frame[at + value.end..]);
    let length = u32::try_from(mended.len() - FRAME_HEADER).ok()?.to_be_bytes();
    mended[..3].copy_from_slice(&length[1..]);
    (length[0] == 0).then_some(mended)
}

/// Where the authority's value stands in a block of header fields, and how many letters it has.
fn authority(block: &[u8]) -> Option<(std::ops::Range<usize>, usize)> {
    let mut rest = block;
    loop {
        let (bits, literal) = match *rest.first()? {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => (5, false), // the table's size
            _ => (4, true),
        };
        let name = read_number(&mut rest, bits)?;
        if !literal {
            continue;
        }
        if name == 0 {
            read_text(&mut rest)?;
        }
        let start = block.len() - rest.len();
        let letters = read_text(&mut rest)?;
        if name == AUTHORITY {
            return Some((start..block.len() - rest.len(), letters?));
        }
    }
}

/// A number that begins with the lowest bits of a byte.
fn read_number(rest: &mut &[u8], bits: u32) -> Option<usize> {
    let most = (1 << bits) - 1;
    let mut next = || {
        let (&first, after) = rest.split_first()?;
        *rest = after;
        Some(usize::from(first))
    };
    let mut number = next()? & most;
    if number < most {
        return Some(number);
    }
    for shift in [0, 7, 14] {
        let byte = next()?;
        number += (byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

/// Writes a length of plain text.
fn number(mut number: usize, out: &mut Vec<u8>) {
    let byte = |number: usize| u8::try_from(number).expect("masked");
    if number < 0x7f {
        return out.push(byte(number));
    }
    out.push(0x7f);
    number -= 0x7f;
    while number >= 0x80 {
        out.push(byte(number & 0x7f | 0x80));
        number >>= 7;
    }
    out.push(byte(number));
}

/// Passes a text over: how many letters it has, if that can be told.
fn read_text(rest: &mut &[u8]) -> Option<Option<usize>> {
    let packed = *rest.first()? >= 0x80;
    let size = read_number(rest, 7)?;
    let (text, after) = rest.split_at_checked(size)?;
    *rest = after;
    Some(if packed { count(text) } else { Some(size) })
}

/// How many letters a packed text has. What is left over are ones.
fn count(text: &[u8]) -> Option<usize> {
    let (mut code, mut bits, mut letters) = (0_u32, 0, 0);
    for bit in text.iter().flat_map(|byte| (0..8).rev().map(move |n| byte >> n & 1)) {
        (code, bits) = (code << 1 | u32::from(bit), bits + 1);
        let known = |&(size, first, more)| size == bits && code >= first && code < first + more;
        if HUFFMAN.iter().any(known) {
            (code, bits, letters) = (0, 0, letters + 1);
        } else if bits > 15 {
            return None;
        }
    }
    (bits < 8 && code == (1 << bits) - 1).then_some(letters)
}

impl<R: AsyncRead + Unpin> AsyncRead for Mended<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            let (ready, at) = &mut this.ready;
            if *at < ready.len() {
                let piece = (ready.len() - *at).min(buf.remaining());
                buf.put_slice(&ready[*at..*at + piece]);
                *at += piece;
                return Poll::Ready(Ok(()));
            }
            this.ready = (Vec::new(), 0);
            if this.done {
                return Pin::new(&mut this.read).poll_read(cx, buf);
            }
            let mut bytes = [0; 1024];
            let mut more = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.read).poll_read(cx, &mut more))?;
            this.done = more.filled().is_empty();
            this.take(more.filled());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of header fields: a known method, `:authority`, then a field with a new name.
    fn frame(value: &[u8]) -> Vec<u8> {
        let block = [&[0x83, 0x41], value, &[0x40, 1, b'a', 1, b'b']].concat();
        let length = u8::try_from(block.len()).expect("it is short");
        [&[0, 0, length, HEADERS, END_HEADERS, 0, 0, 0, 1], &block[..]].concat()
    }

    #[test]
    fn an_authority_becomes_as_many_letters() {
        let plain = [&[6][..], b"http:/"].concat();
        assert_eq!(mend(&frame(&plain)), Some(frame(b"\x06xxxxxx")));
        // www.example.com, as RFC 7541 (C.4.1) packs it.
        let packed = b"\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
        assert_eq!(mend(&frame(packed)), Some(frame(b"\x0fxxxxxxxxxxxxxxx")));
        let long = [&[0x7f, 0x01][..], &[b'/'; 128]].concat();
        let same = mend(&frame(&long)).map(|frame| frame.len());
        assert_eq!(same, Some(frame(&long).len()));
        for broken in [&b""[..], b"\x7fabc", b"\xff", b"\x82\xff\xff"] {
            assert_eq!(mend(&frame(broken)), None, "{broken:?}");
        }
        assert_eq!(mend(&[0, 0, 1, HEADERS, END_HEADERS | PADDED, 0, 0, 0, 1, 9]), None);
    }

    #[test]
    fn only_the_first_request_is_touched_however_it_comes() {
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        let request = frame(b"\x06http:/");
        let sent = [&settings[..], &request, &request].concat();
        let read = [&settings[..], &frame(b"\x06xxxxxx"), &request].concat();
        for size in [1, 7, 30, 1000] {
            let mut mended = Mended::new(());
            sent.chunks(size).for_each(|chunk| mended.take(chunk));
            assert_eq!(mended.ready.0, read, "in pieces of {size}");
        }
        // A client may wait for an answer before its first request.
        let mut mended = Mended::new(());
        mended.take(&sent[..settings.len() + 5]);
        assert_eq!(mended.ready.0, settings);
        // What is too large to be held is left to who knows about frames.
        let mut mended = Mended::new(());
        let large = [&[2, 0, 0, HEADERS, END_HEADERS, 0, 0, 0, 1][..], &[7; MOST_HELD]].concat();
        large.chunks(10_000).for_each(|chunk| mended.take(chunk));
        assert_eq!(mended.ready.0, large);
    }
}
