//! Container logs in CRI's format: `<time> <stream> <F|P> <text>`, one line per line of output.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

/// Longest text on one log line; what is longer is split, all but the last part tagged `P`.
pub const MAX_LINE: usize = 16 * 1024;

/// Turns the output of one stream into log lines.
#[derive(Clone, Debug)]
pub struct LogStream {
    name: &'static str,
    pending: Vec<u8>,
}

impl LogStream {
    /// `name` is `stdout` or `stderr`.
    #[must_use]
    pub fn new(name: &'static str) -> LogStream {
        LogStream { name, pending: Vec::new() }
    }

    /// Appends to `out` the lines that `bytes` complete; `time` is RFC 3339.
    pub fn feed(&mut self, mut bytes: &[u8], time: &str, out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            let room = MAX_LINE - self.pending.len();
            let window = &bytes[..bytes.len().min(room)];
            match window.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.line(&window[..end], 'F', time, out);
                    bytes = &bytes[end + 1..];
                }
                // A full line followed by its newline is whole, so wait for the next byte.
                None if bytes.len() <= room => {
                    self.pending.extend_from_slice(bytes);
                    bytes = &[];
                }
                None => {
                    let tag = if bytes[room] == b'\n' { 'F' } else { 'P' };
                    self.line(window, tag, time, out);
                    bytes = &bytes[room + usize::from(tag == 'F')..];
                }
            }
        }
    }

    /// Appends what has no newline when the stream ends.
    pub fn finish(&mut self, time: &str, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            self.line(&[], 'P', time, out);
        }
    }

    fn line(&mut self, rest: &[u8], tag: char, time: &str, out: &mut Vec<u8>) {
        let mut head = String::new();
        write!(head, "{time} {} {tag} ", self.name).expect("a String takes every text");
        out.extend_from_slice(head.as_bytes());
        out.append(&mut self.pending);
        out.extend_from_slice(rest);
        out.push(b'\n');
    }
}

/// A time in UTC as `YYYY-MM-DDThh:mm:ss.nnnnnnnnnZ`; `nanos` counts from the Unix epoch.
#[must_use]
pub fn rfc3339_nanos(nanos: i64) -> String {
    let (seconds, fraction) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to civil date in the proleptic Gregorian calendar, years starting in March.
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let date = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    alloc::format!(
        "{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{:02}.{fraction:09}Z",
        second % 60
    )
}
