//! Netfilter's netlink: messages with nested attributes, batches, answers.
//!
//! The kernel works a request off while it is sent, so answers are there when `send` returns and
//! nothing ever waits. A batch is one datagram and one transaction.

use std::fmt;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
    sockopt,
};

/// Length of a message's header, and of netfilter's own behind it.
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;
/// Room for the answers of one request.
const ANSWERS: usize = 4 << 20;
/// Room for one of them: a refusal repeats the message.
const ANSWER: usize = 128 << 10;

const F_REQUEST: u16 = 1;
pub(crate) const F_ACK: u16 = 4;
pub(crate) const F_CREATE: u16 = 0x400;
pub(crate) const F_APPEND: u16 = 0x800;
pub(crate) const F_DUMP: u16 = 0x300;
const F_NESTED: u16 = 0x8000;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// Why the kernel does not have what it was told.
#[derive(Debug)]
pub enum NetfilterError {
    /// There is no such socket, or it cannot carry this.
    Socket(Errno),
    /// The kernel refused a message: which one of the batch, and why.
    Refused(u32, Errno),
    /// The kernel's answer got lost; what holds now is unknown.
    Unanswered,
}

impl std::error::Error for NetfilterError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Socket(errno) | Self::Refused(_, errno) => Some(errno),
            Self::Unanswered => None,
        }
    }
}

impl fmt::Display for NetfilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(errno) => write!(f, "netfilter's netlink: {errno}"),
            Self::Refused(at, errno) => write!(f, "netfilter refused message {at}: {errno}"),
            Self::Unanswered => f.write_str("netfilter's answer got lost"),
        }
    }
}

/// Messages under construction, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    bytes: Vec<u8>,
    count: u32,
    open: usize,
}

impl Messages {
    /// Bytes of the message under construction.
    pub(crate) fn length(&self) -> usize {
        self.bytes.len() - self.open
    }

    /// Begins a message; `subsystem << 8 | type`.
    pub(crate) fn begin(&mut self, kind: u16, flags: u16, family: u8, resource: u16) {
        self.open = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((F_REQUEST | flags).to_ne_bytes());
        self.bytes.extend(self.count.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.count += 1;
    }

    /// Ends the message.
    pub(crate) fn end(&mut self) {
        let length = u32::try_from(self.length()).expect("a message is far below 4 GiB");
        self.bytes[self.open..self.open + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// An attribute.
    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).expect("an attribute is below 64 KiB");
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.pad();
    }

    /// A string, ended by a zero.
    pub(crate) fn text(&mut self, kind: u16, text: impl fmt::Display) {
        self.put(kind, format!("{text}\0").as_bytes());
    }

    /// A number in network order, as netfilter has all of them.
    pub(crate) fn number(&mut self, kind: u16, number: u32) {
        self.put(kind, &number.to_be_bytes());
    }

    /// An attribute of attributes.
    pub(crate) fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) {
        let start = self.open_nest(kind);
        inner(self);
        self.close_nest(start);
    }

    /// Begins an attribute of attributes; where it began.
    pub(crate) fn open_nest(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend((kind | F_NESTED).to_ne_bytes());
        start
    }

    /// Ends what [`Messages::open_nest`] began.
    pub(crate) fn close_nest(&mut self, start: usize) {
        let length = u16::try_from(self.bytes.len() - start).expect("lists are cut below 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// Begins a batch for a subsystem.
    pub(crate) fn begin_batch(&mut self, subsystem: u16) {
        self.begin(BATCH_BEGIN, 0, 0, subsystem);
        self.end();
    }

    /// Ends a batch; its last message before is acknowledged.
    pub(crate) fn end_batch(&mut self, subsystem: u16) {
        let flags = self.open + 6;
        let with_ack = u16::from_ne_bytes([self.bytes[flags], self.bytes[flags + 1]]) | F_ACK;
        self.bytes[flags..flags + 2].copy_from_slice(&with_ack.to_ne_bytes());
        self.begin(BATCH_END, 0, 0, subsystem);
        self.end();
    }

    /// What is sent.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Attributes of a message or of an attribute: (kind, value).
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = bytes.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]])).checked_sub(4)?;
        let value = rest.get(..length)?;
        bytes = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([head[2], head[3]]) & !F_NESTED, value))
    })
}

/// The messages of a datagram: (type, sequence, what follows the header).
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let (head, _) = bytes.split_first_chunk::<HEADER>()?;
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let sequence = u32::from_ne_bytes([head[8], head[9], head[10], head[11]]);
        Some((u16::from_ne_bytes([head[4], head[5]]), sequence, body))
    })
}

/// A socket to netfilter, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    room: usize,
}

impl Socket {
    /// Opens it.
    pub(crate) fn open() -> Result<Self, NetfilterError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = (AddressFamily::NETLINK, SocketType::RAW);
        let fd = socket_with(kind.0, kind.1, flags, Some(netlink::NETFILTER))
            .map_err(NetfilterError::Socket)?;
        sockopt::set_socket_recv_buffer_size_force(&fd, ANSWERS).map_err(NetfilterError::Socket)?;
        Ok(Self { fd, room: 0 })
    }

    /// Sends messages at once and reads what comes back; whatever is no answer goes to `each`.
    pub(crate) fn exchange(
        &mut self,
        messages: &Messages,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), NetfilterError> {
        let length = messages.bytes.len();
        if length + 4096 > self.room {
            self.room = length * 2 + 4096;
            sockopt::set_socket_send_buffer_size_force(&self.fd, self.room)
                .map_err(NetfilterError::Socket)?;
        }
        send(&self.fd, &messages.bytes, SendFlags::empty()).map_err(NetfilterError::Socket)?;
        let mut buffer = vec![0; ANSWER];
        let (mut refused, mut done) = (None, false);
        while self.receive(&mut buffer, &mut refused, &mut each)? {
            done = true;
        }
        match (refused, done) {
            (Some((at, errno)), _) => Err(NetfilterError::Refused(at, errno)),
            (None, true) => Ok(()),
            (None, false) => Err(NetfilterError::Unanswered),
        }
    }

    /// Reads until something is answered; false when there is nothing more.
    fn receive(
        &self,
        buffer: &mut [u8],
        refused: &mut Option<(u32, Errno)>,
        each: &mut impl FnMut(&[u8]),
    ) -> Result<bool, NetfilterError> {
        loop {
            let length = match recv(&self.fd, &mut *buffer, RecvFlags::empty()) {
                Ok((length, _)) => length,
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => continue,
                Err(Errno::NOBUFS) => return Err(NetfilterError::Unanswered),
                Err(errno) => return Err(NetfilterError::Socket(errno)),
            };
            let mut done = false;
            for (kind, sequence, body) in messages(&buffer[..length]) {
                match kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                        if code != 0 {
                            refused.get_or_insert((sequence, Errno::from_raw_os_error(-code)));
                        }
                        done = true;
                    }
                    _ => each(body.get(FAMILY_HEADER..).unwrap_or_default()),
                }
            }
            if done {
                return Ok(true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut written = Messages::default();
        written.begin(0x0a03, F_CREATE, 1, 0);
        written.text(3, "chain");
        written.nest(4, |inner| {
            inner.number(1, 2);
            inner.put(2, &[7]);
        });
        written.end();
        let (kind, sequence, body) = messages(written.bytes()).next().expect("one message");
        assert_eq!((kind, sequence), (0x0a03, 0));
        let outer: Vec<_> = attributes(&body[FAMILY_HEADER..]).collect();
        assert_eq!(outer[0], (3, &b"chain\0"[..]));
        let inner: Vec<_> = attributes(outer[1].1).collect();
        assert_eq!(inner, [(1, &[0, 0, 0, 2][..]), (2, &[7][..])]);
    }

    #[test]
    fn broken_bytes_end_the_reading() {
        for bytes in [&[3, 0, 1, 0][..], &[9, 0, 1, 0, 1], &[1], &[4, 0]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
        assert_eq!(messages(&[255; 40]).count(), 0);
    }
}
