//! Reads who asks for what in a certificate request (PKCS#10, RFC 2986), and nothing else of it.
//!
//! Hostile input: every length is checked, nothing recurses, what is not understood is refused.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OCTETS: u8 = 0x04;
const OID: u8 = 0x06;
const ATTRIBUTES: u8 = 0xA0;
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0A];
const EXTENSION_REQUEST: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x09, 0x0E];
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1D, 0x11];

/// The subject and the alternative names of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// CN; the last one when there are several.
    pub common_name: String,
    /// O, in order.
    pub organizations: Vec<String>,
    /// How many DNS names it wants.
    pub dns_names: usize,
    /// How many IP addresses.
    pub addresses: usize,
    /// How many names of other kinds (e-mail, URI, …).
    pub other_names: usize,
}

impl Request {
    /// Reads the PEM form; `None` when it is no certificate request.
    pub fn from_pem(pem: &str) -> Option<Self> {
        const BEGIN: &str = "-----BEGIN CERTIFICATE REQUEST-----";
        const END: &str = "-----END CERTIFICATE REQUEST-----";
        let body = pem.split_once(BEGIN)?.1.split_once(END)?.0;
        let packed: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        Self::from_der(&STANDARD.decode(packed).ok()?)
    }

    /// Reads the DER form.
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let mut info = Der(Der(Der(der).take(SEQUENCE)?).take(SEQUENCE)?);
        info.take(0x02)?;
        let mut request = Self::default();
        request.read_subject(info.take(SEQUENCE)?)?;
        info.take(SEQUENCE)?;
        if let Some((ATTRIBUTES, attributes)) = info.next() {
            request.read_attributes(attributes)?;
        }
        Some(request)
    }

    fn read_subject(&mut self, name: &[u8]) -> Option<()> {
        let mut parts = Der(name);
        while !parts.0.is_empty() {
            let mut set = Der(parts.take(SET)?);
            while !set.0.is_empty() {
                let mut pair = Der(set.take(SEQUENCE)?);
                let oid = pair.take(OID)?;
                let (tag, value) = pair.next()?;
                let text = || text(tag, value);
                match oid {
                    COMMON_NAME => self.common_name = text()?,
                    ORGANIZATION => self.organizations.push(text()?),
                    _ => {}
                }
            }
        }
        Some(())
    }

    fn read_attributes(&mut self, attributes: &[u8]) -> Option<()> {
        let mut attributes = Der(attributes);
        while !attributes.0.is_empty() {
            let mut attribute = Der(attributes.take(SEQUENCE)?);
            if attribute.take(OID)? == EXTENSION_REQUEST {
                let mut values = Der(attribute.take(SET)?);
                while !values.0.is_empty() {
                    self.read_extensions(values.take(SEQUENCE)?)?;
                }
            }
        }
        Some(())
    }

    fn read_extensions(&mut self, extensions: &[u8]) -> Option<()> {
        let mut extensions = Der(extensions);
        while !extensions.0.is_empty() {
            let mut extension = Der(extensions.take(SEQUENCE)?);
            let oid = extension.take(OID)?;
            let (mut tag, mut value) = extension.next()?;
            if tag == 0x01 {
                // Whether it is critical.
                (tag, value) = extension.next()?;
            }
            if oid == ALTERNATIVE_NAMES {
                self.read_names((tag == OCTETS).then_some(value)?)?;
            }
        }
        Some(())
    }

    fn read_names(&mut self, names: &[u8]) -> Option<()> {
        let mut names = Der(Der(names).take(SEQUENCE)?);
        while !names.0.is_empty() {
            match names.next()?.0 {
                0x82 => self.dns_names += 1,
                0x87 => self.addresses += 1,
                _ => self.other_names += 1,
            }
        }
        Some(())
    }
}

/// UTF8String, PrintableString, IA5String.
fn text(tag: u8, value: &[u8]) -> Option<String> {
    let text = core::str::from_utf8(value).ok()?;
    matches!(tag, 0x0C | 0x13 | 0x16).then(|| text.to_owned())
}

/// What is left to read of a DER value.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next element: its tag and its content.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (tag, rest) = self.0.split_first()?;
        let (first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7F => (usize::from(*first), rest),
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7F))?;
                (bytes.iter().fold(0, |n, byte| n << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((*tag, content))
    }

    /// The content of the next element, which must have this tag.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (found, content) = self.next()?;
        (found == tag).then_some(content)
    }
}
