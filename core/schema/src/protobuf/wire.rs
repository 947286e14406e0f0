//! Protobuf's own words: tags, varints, lengths. Nothing here knows of types.
use alloc::vec::Vec;

use super::ProtobufError;

/// Groups inside groups that a skip follows; nothing upstream writes has any.
const MAX_GROUPS: usize = 100;

/// What stands behind a tag.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Len(&'a [u8]),
    Fixed32,
}

impl<'a> Wire<'a> {
    pub(super) fn varint(self) -> Result<u64, ProtobufError> {
        match self {
            Wire::Varint(value) => Ok(value),
            other => Err(ProtobufError::WireType(other.number())),
        }
    }

    pub(super) fn fixed64(self) -> Result<u64, ProtobufError> {
        match self {
            Wire::Fixed64(value) => Ok(value),
            other => Err(ProtobufError::WireType(other.number())),
        }
    }

    pub(super) fn bytes(self) -> Result<&'a [u8], ProtobufError> {
        match self {
            Wire::Len(value) => Ok(value),
            other => Err(ProtobufError::WireType(other.number())),
        }
    }

    pub(super) fn text(self) -> Result<&'a str, ProtobufError> {
        core::str::from_utf8(self.bytes()?).map_err(|_| ProtobufError::Utf8)
    }

    fn number(self) -> u8 {
        match self {
            Wire::Varint(_) => 0,
            Wire::Fixed64(_) => 1,
            Wire::Len(_) => 2,
            Wire::Fixed32 => 5,
        }
    }
}

/// The fields of one message, in order.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    /// The next field; groups are skipped, as nothing of ours is one.
    pub(super) fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, ProtobufError> {
        let mut groups = 0_usize;
        while !self.0.is_empty() {
            let tag = self.varint()?;
            let number = u32::try_from(tag >> 3).ok().filter(|n| (1..1 << 29).contains(n));
            let number = number.ok_or(ProtobufError::Tag)?;
            match self.wire((tag & 7) as u8)? {
                Some(wire) if groups == 0 => return Ok(Some((number, wire))),
                Some(_) => {}
                None if tag & 7 == 3 && groups < MAX_GROUPS => groups += 1,
                None => groups = groups.checked_sub(1).ok_or(ProtobufError::Tag)?,
            }
        }
        if groups > 0 { Err(ProtobufError::Truncated) } else { Ok(None) }
    }

    /// The value behind a tag; none where a group begins or ends.
    fn wire(&mut self, wire_type: u8) -> Result<Option<Wire<'a>>, ProtobufError> {
        Ok(Some(match wire_type {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(self.fixed64()?),
            2 => {
                let length = self.varint()?;
                let length = usize::try_from(length).map_err(|_| ProtobufError::Truncated)?;
                Wire::Len(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            3 | 4 => return Ok(None),
            other => return Err(ProtobufError::WireType(other)),
        }))
    }

    pub(super) fn varint(&mut self) -> Result<u64, ProtobufError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(ProtobufError::Overflow)
    }

    pub(super) fn fixed64(&mut self) -> Result<u64, ProtobufError> {
        let bytes = self.take(8)?.try_into().expect("eight bytes were taken");
        Ok(u64::from_le_bytes(bytes))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ProtobufError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(ProtobufError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }
}

fn put_raw_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_tag(out: &mut Vec<u8>, number: u16, wire_type: u8) {
    put_raw_varint(out, u64::from(number) << 3 | u64::from(wire_type));
}

pub(super) fn put_varint(out: &mut Vec<u8>, number: u16, value: u64) {
    put_tag(out, number, 0);
    put_raw_varint(out, value);
}

pub(super) fn put_double(out: &mut Vec<u8>, number: u16, value: f64) {
    put_tag(out, number, 1);
    out.extend_from_slice(&value.to_bits().to_le_bytes());
}

pub(super) fn put_bytes(out: &mut Vec<u8>, number: u16, value: &[u8]) {
    put_tag(out, number, 2);
    put_raw_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// A message as a field.
pub(super) fn put_message(out: &mut Vec<u8>, number: u16, write: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    write(&mut inner);
    put_bytes(out, number, &inner);
}
