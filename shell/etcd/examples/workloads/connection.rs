//! As much of HTTP/2 (RFC 9113) as a client of gRPC needs that costs next to nothing beside the
//! server it measures: all requests of one turn leave in one write, all answers of one are read at
//! once, and a request's fields are six bytes after the first.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What the server may send before it is told that more is welcome: on a stream, and in all.
const STREAM_WINDOW: u32 = 1 << 20;
const WINDOW: u32 = 1 << 30;

/// The fields of a request whose server keeps those of the first in its table, the last one first:
/// POST, http, and four of the table (RFC 7541, section 2.3.3).
const REPEATED: &[u8] = &[0x83, 0x86, 0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62];

/// What is heard on a stream: a part of its messages, or that it ended.
pub enum Heard {
    Data(u32, Bytes),
    End(u32),
}

/// A connection all of whose streams call one method.
pub struct Connection {
    stream: TcpStream,
    read: BytesMut,
    write: BytesMut,
    /// The fields of the next request.
    fields: Bytes,
    next: u32,
    /// Bytes of messages that the server still takes, and what waits for more of them.
    window: usize,
    waiting: VecDeque<Bytes>,
    /// Bytes heard since the server was told that more are welcome.
    heard: u32,
}

impl Connection {
    /// `method` is a service's name, a slash and the method's.
    pub async fn open(address: &str, method: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut write = BytesMut::from(&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..]);
        head(&mut write, 6, SETTINGS, 0, 0);
        write.put_u16(4); // SETTINGS_INITIAL_WINDOW_SIZE
        write.put_u32(STREAM_WINDOW);
        welcome(&mut write, 0, WINDOW);
        let (read, waiting) = (BytesMut::new(), VecDeque::new());
        Self {
            stream,
            read,
            write,
            fields: first(method),
            next: 1,
            window: 65_535,
            waiting,
            heard: 0,
        }
    }

    /// Opens a stream.
    pub fn call(&mut self) -> u32 {
        let stream = self.next;
        self.next += 2;
        head(&mut self.write, self.fields.len(), HEADERS, END_HEADERS, stream);
        self.write.put_slice(&self.fields);
        self.fields = Bytes::from_static(REPEATED);
        stream
    }

    /// Sends a message with its prefix of gRPC, the last one of its stream or not.
    pub fn send(&mut self, stream: u32, message: &impl prost::Message, last: bool) {
        let len = message.encoded_len();
        let mut out = BytesMut::with_capacity(14 + len);
        head(&mut out, 5 + len, DATA, if last { END_STREAM } else { 0 }, stream);
        out.put_u8(0);
        out.put_u32(len as u32);
        message.encode(&mut out).unwrap();
        self.waiting.push_back(out.freeze());
        self.fill();
    }

    fn fill(&mut self) {
        while let Some(data) = self.waiting.pop_front_if(|data| data.len() - 9 <= self.window) {
            self.window -= data.len() - 9;
            self.write.put(data);
        }
    }

    /// Sends what was written, and waits for what the server says next.
    pub async fn hear(&mut self) -> Vec<Heard> {
        self.stream.write_all_buf(&mut self.write).await.unwrap();
        self.read.reserve(64 << 10);
        assert_ne!(self.stream.read_buf(&mut self.read).await.unwrap(), 0, "the server went away");
        let mut heard = Vec::new();
        while self.read.len() >= 9 {
            let len = (&self.read[..]).get_uint(3) as usize;
            if self.read.len() < 9 + len {
                break;
            }
            let mut frame = self.read.split_to(9 + len).freeze();
            let (kind, flags) = (frame[3], frame[4]);
            frame.advance(5);
            let stream = frame.get_u32();
            self.frame(kind, flags, stream, frame, &mut heard);
        }
        heard
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, mut body: Bytes, heard: &mut Vec<Heard>) {
        match kind {
            DATA => {
                self.heard += body.len() as u32;
                if self.heard > WINDOW / 2 {
                    welcome(&mut self.write, 0, std::mem::take(&mut self.heard));
                }
                heard.push(Heard::Data(stream, body));
            }
            HEADERS => assert_ne!(flags & END_HEADERS, 0, "fields in pieces"),
            SETTINGS if flags & ACK == 0 => head(&mut self.write, 0, SETTINGS, ACK, 0),
            PING if flags & ACK == 0 => {
                head(&mut self.write, body.len(), PING, ACK, 0);
                self.write.put(body);
            }
            WINDOW_UPDATE if stream == 0 => {
                self.window += body.get_u32() as usize;
                self.fill();
            }
            SETTINGS | PING | WINDOW_UPDATE => {}
            other => panic!("a frame of type {other} on stream {stream}: {body:?}"),
        }
        if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            heard.push(Heard::End(stream));
        }
    }

    /// Lets the server send as much more on a stream as was heard of it.
    pub fn welcome(&mut self, stream: u32, bytes: usize) {
        welcome(&mut self.write, stream, bytes as u32);
    }
}

fn head(out: &mut BytesMut, len: usize, kind: u8, flags: u8, stream: u32) {
    out.put_uint(len as u64, 3);
    out.put_slice(&[kind, flags]);
    out.put_u32(stream);
}

fn welcome(out: &mut BytesMut, stream: u32, bytes: u32) {
    head(out, 4, WINDOW_UPDATE, 0, stream);
    out.put_u32(bytes);
}

/// The fields of the first request, for the server's table (RFC 7541, section 6.2.1).
fn first(method: &str) -> Bytes {
    let path = format!("/{method}");
    let mut out = BytesMut::from(&REPEATED[..2]);
    let mut keep = |name: &[u8], value: &str| {
        out.put_slice(name);
        out.put_u8(value.len() as u8);
        out.put_slice(value.as_bytes());
    };
    keep(&[0x40 | 4], &path);
    keep(&[0x40 | 1], "etcd");
    keep(&[0x40 | 31], "application/grpc");
    keep(b"\x40\x02te", "trailers");
    out.freeze()
}
