//! SPDY/3.1 as `port-forward` needs it: frames to and from bytes, without IO.
//!
//! Only what a server is sent and sends: streams are opened by the client, there is no flow
//! control (Kubernetes' clients and servers have none either), header blocks are compressed with
//! one dictionary per direction.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

use bytes::{Buf, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Most bytes of a frame; clients send 32 KiB at a time.
const MAX_FRAME: usize = 1 << 20;
/// Most bytes of a header block.
const MAX_HEADERS: usize = 64 << 10;
const HEAD: usize = 8;
/// Version 3, marked as a control frame.
const CONTROL: u16 = 0x8003;
const LAST: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;

/// The words of the specification's dictionary, each after its length.
const WORDS: &[&str] = &[
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];

/// What follows the words.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416\
    417502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad \
    Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not \
    Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 \
    Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,\
    deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let length = |word: &str| u32::try_from(word.len()).expect("words are short").to_be_bytes();
    let mut bytes: Vec<u8> =
        WORDS.iter().flat_map(|word| [&length(word)[..], word.as_bytes()].concat()).collect();
    bytes.extend_from_slice(TAIL.as_bytes());
    bytes
});

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// It opens a stream; names are lower-case.
    Open {
        /// The stream.
        stream: u32,
        /// What it is for.
        headers: BTreeMap<String, String>,
        /// It will not write to it.
        last: bool,
    },
    /// Bytes of a stream.
    Data {
        /// The stream.
        stream: u32,
        /// The bytes.
        bytes: Bytes,
        /// No more will come.
        last: bool,
    },
    /// It has no interest in a stream any more.
    Reset(u32),
    /// To be sent back.
    Ping(u32),
    /// It opens no more streams.
    GoAway,
    /// What needs no answer.
    Other,
}

/// Why a client is not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpdyError {
    /// Not SPDY/3.
    Version,
    /// A frame or header block is too long.
    TooLong,
    /// A frame contradicts itself, or its header block does not unpack.
    Broken,
}

impl std::error::Error for SpdyError {}

impl fmt::Display for SpdyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Version => "this is not SPDY/3",
            Self::TooLong => "a SPDY frame is too long",
            Self::Broken => "a SPDY frame is broken",
        })
    }
}

/// Reads frames out of bytes that come in pieces of any size.
pub(crate) struct Reader {
    buffer: BytesMut,
    inflate: Decompress,
}

impl Default for Reader {
    fn default() -> Self {
        Self { buffer: BytesMut::new(), inflate: Decompress::new(true) }
    }
}

impl Reader {
    /// Takes what came.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if it is there.
    ///
    /// # Errors
    /// After one the connection is of no use.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, SpdyError> {
        let Some(head) = self.buffer.first_chunk::<HEAD>() else { return Ok(None) };
        let [first @ .., flags, long, middle, short] = *head;
        let length = u32::from_be_bytes([0, long, middle, short]) as usize;
        if length > MAX_FRAME {
            return Err(SpdyError::TooLong);
        }
        if self.buffer.len() < HEAD + length {
            return Ok(None);
        }
        let body = self.buffer.split_to(HEAD + length).freeze().slice(HEAD..);
        let last = flags & LAST != 0;
        if first[0] & 0x80 == 0 {
            return Ok(Some(Frame::Data { stream: u32::from_be_bytes(first), bytes: body, last }));
        }
        let [version @ .., kind_high, kind_low] = first;
        if u16::from_be_bytes(version) != CONTROL {
            return Err(SpdyError::Version);
        }
        self.control(u16::from_be_bytes([kind_high, kind_low]), body, last).map(Some)
    }

    fn control(&mut self, kind: u16, mut body: Bytes, last: bool) -> Result<Frame, SpdyError> {
        let mut number = || body.try_get_u32().map_err(|_| SpdyError::Broken);
        Ok(match kind {
            SYN_STREAM => {
                let stream = number()? & 0x7fff_ffff;
                // The associated stream, then priority and slot.
                number()?;
                body.try_get_u16().map_err(|_| SpdyError::Broken)?;
                Frame::Open { stream, headers: self.headers(&body)?, last }
            }
            RST_STREAM => Frame::Reset(number()? & 0x7fff_ffff),
            PING => Frame::Ping(number()?),
            GOAWAY => Frame::GoAway,
            _ => Frame::Other,
        })
    }

    fn headers(&mut self, block: &[u8]) -> Result<BTreeMap<String, String>, SpdyError> {
        let mut plain = Bytes::from(self.unpacked(block)?);
        let count = plain.try_get_u32().map_err(|_| SpdyError::Broken)?;
        let mut word = || {
            let length = plain.try_get_u32().map_err(|_| SpdyError::Broken)? as usize;
            if length > plain.len() {
                return Err(SpdyError::Broken);
            }
            Ok(String::from_utf8_lossy(&plain.split_to(length)).into_owned())
        };
        (0..count).map(|_| Ok((word()?.to_ascii_lowercase(), word()?))).collect()
    }

    /// Unpacks a header block; the state goes on from one to the next.
    fn unpacked(&mut self, block: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let mut plain = Vec::with_capacity(MAX_HEADERS);
        let begin = self.inflate.total_in();
        loop {
            let used = usize::try_from(self.inflate.total_in() - begin).unwrap_or(block.len());
            let before = (used, plain.len());
            let rest = block.get(used..).unwrap_or_default();
            match self.inflate.decompress_vec(rest, &mut plain, FlushDecompress::Sync) {
                Err(error) if error.needs_dictionary().is_some() => {
                    let set = self.inflate.set_dictionary(&DICTIONARY);
                    set.map_err(|_| SpdyError::Broken)?;
                    continue;
                }
                Err(_) => return Err(SpdyError::Broken),
                Ok(Status::StreamEnd) => return Err(SpdyError::Broken),
                Ok(_) => {}
            }
            let used = usize::try_from(self.inflate.total_in() - begin).unwrap_or(block.len());
            if plain.len() == plain.capacity() {
                return Err(SpdyError::TooLong);
            }
            if used == block.len() || (used, plain.len()) == before {
                return Ok(plain);
            }
        }
    }
}

/// Writes frames.
pub(crate) struct Writer {
    deflate: Compress,
}

impl Default for Writer {
    fn default() -> Self {
        let mut deflate = Compress::new(Compression::fast(), true);
        deflate.set_dictionary(&DICTIONARY).expect("a fresh compressor takes a dictionary");
        Self { deflate }
    }
}

impl Writer {
    /// Accepts a stream.
    pub(crate) fn reply(&mut self, stream: u32) -> Bytes {
        let mut block = Vec::with_capacity(64);
        // No headers.
        let packed = self.deflate.compress_vec(&[0; 4], &mut block, FlushCompress::Sync);
        packed.expect("a compressor takes anything");
        control(SYN_REPLY, &[&stream.to_be_bytes(), &block])
    }
}

fn control(kind: u16, parts: &[&[u8]]) -> Bytes {
    let length = parts.iter().map(|part| part.len()).sum();
    let mut frame = [CONTROL.to_be_bytes(), kind.to_be_bytes()].concat();
    frame.extend(flags_and_length(0, length));
    parts.iter().for_each(|part| frame.extend_from_slice(part));
    frame.into()
}

fn flags_and_length(flags: u8, length: usize) -> [u8; 4] {
    let [_, long, middle, short] = u32::try_from(length).expect("frames are short").to_be_bytes();
    [flags, long, middle, short]
}

/// Bytes of a stream; an empty last frame ends it.
pub(crate) fn data(stream: u32, bytes: &[u8], last: bool) -> Bytes {
    let flags = if last { LAST } else { 0 };
    [&stream.to_be_bytes()[..], &flags_and_length(flags, bytes.len()), bytes].concat().into()
}

/// Gives a stream up.
pub(crate) fn reset(stream: u32) -> Bytes {
    const CANCEL: u32 = 5;
    control(RST_STREAM, &[&stream.to_be_bytes(), &CANCEL.to_be_bytes()])
}

/// Sends a ping back.
pub(crate) fn pong(id: u32) -> Bytes {
    control(PING, &[&id.to_be_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A client's compressor, and frames as a client writes them.
    struct Client(Compress);

    impl Client {
        fn new() -> Self {
            Self(Writer::default().deflate)
        }

        fn open(&mut self, stream: u32, headers: &[(&str, &str)]) -> Bytes {
            let count = u32::try_from(headers.len()).expect("few");
            let mut plain = count.to_be_bytes().to_vec();
            for word in headers.iter().flat_map(|(name, value)| [name, value]) {
                plain.extend(u32::try_from(word.len()).expect("short").to_be_bytes());
                plain.extend(word.as_bytes());
            }
            let mut block = Vec::with_capacity(plain.len() + 256);
            self.0.compress_vec(&plain, &mut block, FlushCompress::Sync).expect("packed");
            control(SYN_STREAM, &[&stream.to_be_bytes(), &[0; 6], &block])
        }
    }

    fn all(reader: &mut Reader) -> Vec<Frame> {
        std::iter::from_fn(|| reader.next().expect("understood")).collect()
    }

    #[test]
    fn the_dictionary_is_the_specification_s() {
        assert_eq!(DICTIONARY.len(), 1423);
        let (low, high) = DICTIONARY.iter().fold((1u32, 0u32), |(low, high), byte| {
            let low = (low + u32::from(*byte)) % 65521;
            (low, (high + low) % 65521)
        });
        assert_eq!(high << 16 | low, 0xe3c6_a7c2);
    }

    #[test]
    fn header_blocks_unpack_one_after_the_other() {
        let mut client = Client::new();
        let mut reader = Reader::default();
        for stream in [1, 3, 5] {
            let id = stream.to_string();
            let headers = [("Streamtype", "error"), ("port", "80"), ("requestid", id.as_str())];
            reader.push(&client.open(stream, &headers));
            let [Frame::Open { stream: opened, headers, last: false }] = &all(&mut reader)[..]
            else {
                panic!("a stream opens");
            };
            assert_eq!((*opened, headers["streamtype"].as_str()), (stream, "error"));
            assert_eq!(headers["requestid"], id);
        }
    }

    #[test]
    fn what_is_written_is_as_the_specification_has_it() {
        assert_eq!(data(1, b"hi", false)[..], *b"\0\0\0\x01\0\0\0\x02hi");
        assert_eq!(data(1, b"", true)[..], *b"\0\0\0\x01\x01\0\0\0");
        assert_eq!(pong(7)[..], *b"\x80\x03\0\x06\0\0\0\x04\0\0\0\x07");
        assert_eq!(reset(3)[..], *b"\x80\x03\0\x03\0\0\0\x08\0\0\0\x03\0\0\0\x05");
        // The first block says which dictionary it needs.
        let reply = Writer::default().reply(1);
        assert_eq!(reply[..4], *b"\x80\x03\0\x02");
        assert_eq!(reply[14..18], 0xe3c6_a7c2_u32.to_be_bytes());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |bytes: &[u8]| {
            let mut reader = Reader::default();
            reader.push(bytes);
            reader.next().expect_err("refused")
        };
        assert_eq!(refused(b"\x80\x02\0\x01\0\0\0\0"), SpdyError::Version);
        assert_eq!(refused(b"\0\0\0\x01\0\xff\xff\xff"), SpdyError::TooLong);
        assert_eq!(refused(b"\x80\x03\0\x06\0\0\0\x01x"), SpdyError::Broken);
        assert_eq!(refused(b"\x80\x03\0\x01\0\0\0\x0c\0\0\0\x01\0\0\0\0\0\0xx"), SpdyError::Broken);
    }

    /// Data frames as they are meant and as they are written.
    fn pieces() -> impl Strategy<Value = Vec<(u32, Vec<u8>, bool)>> {
        let bytes = prop::collection::vec(any::<u8>(), 0..80);
        prop::collection::vec((1u32..9, bytes, any::<bool>()), 0..8)
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(pieces in pieces(), cut in 1usize..40) {
            let wire: Vec<u8> = pieces.iter().flat_map(|(s, b, last)| data(*s, b, *last)).collect();
            let wanted: Vec<Frame> = pieces
                .into_iter()
                .map(|(stream, bytes, last)| Frame::Data { stream, bytes: bytes.into(), last })
                .collect();
            let mut reader = Reader::default();
            let mut got = Vec::new();
            for piece in wire.chunks(cut) {
                reader.push(piece);
                got.extend(all(&mut reader));
            }
            prop_assert_eq!(got, wanted);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = Reader::default();
            reader.push(&bytes);
            while let Ok(Some(_)) = reader.next() {}
        }
    }
}
