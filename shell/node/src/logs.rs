//! Reading container logs (CRI format: `TIME STREAM F|P TEXT`).

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use jiff::Timestamp;

/// What is wanted of a log (core/v1 PodLogOptions).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogOptions {
    /// Only the last that many lines.
    pub(crate) tail: Option<usize>,
    /// Only what is at least this new.
    pub(crate) since: Option<Timestamp>,
    /// Each line with its time.
    pub(crate) timestamps: bool,
    /// At most that many bytes.
    pub(crate) limit: Option<usize>,
    /// The log of the run before.
    pub(crate) previous: bool,
}

impl LogOptions {
    /// Reads a query.
    pub(crate) fn parse(query: &str, now: Timestamp) -> Self {
        let mut options = Self::default();
        for pair in query.split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let on = matches!(value, "true" | "1");
            match key {
                "tailLines" => options.tail = value.parse().ok(),
                "limitBytes" => options.limit = value.parse().ok(),
                "timestamps" => options.timestamps = on,
                "previous" => options.previous = on,
                "sinceSeconds" => {
                    let seconds = value.parse().map(jiff::SignedDuration::from_secs).ok();
                    options.since = seconds.and_then(|s| now.saturating_sub(s).ok());
                }
                "sinceTime" => options.since = value.replace("%3A", ":").parse().ok(),
                _ => {}
            }
        }
        options
    }
}

/// Reads a log file as its reader wants it.
///
/// # Errors
/// Those of the file system.
pub(crate) fn read(path: &Path, options: &LogOptions) -> io::Result<Vec<u8>> {
    let mut lines: Vec<Vec<u8>> = Vec::new();
    let mut open = false;
    for line in BufReader::new(File::open(path)?).split(b'\n') {
        let line = line?;
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let (Some(time), Some(_), Some(tag)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let text = parts.next().unwrap_or_default();
        let at = std::str::from_utf8(time).ok().and_then(|time| time.parse::<Timestamp>().ok());
        if options.since.is_some_and(|since| at.is_none_or(|at| at < since)) {
            continue;
        }
        // A line that was too long for one record goes on in the next.
        if !open {
            lines.push(Vec::new());
            if options.timestamps {
                lines.last_mut().expect("just pushed").extend([time, b" "].concat());
            }
        }
        let line = lines.last_mut().expect("there is one");
        line.extend_from_slice(text);
        open = tag == b"P";
        if !open {
            line.push(b'\n');
        }
    }
    let skip = options.tail.map_or(0, |tail| lines.len().saturating_sub(tail));
    let mut out = lines.split_off(skip).concat();
    out.truncate(options.limit.unwrap_or(usize::MAX));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_read_as_asked() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("0.log");
        std::fs::write(
            &path,
            "2026-01-01T00:00:01.000000001Z stdout F one\n\
             2026-01-01T00:00:02Z stderr P tw\n2026-01-01T00:00:02Z stderr F o\n\
             2026-01-01T00:00:03Z stdout F \n2026-01-01T00:00:04Z stdout F four x\n",
        )
        .expect("written");
        let now: Timestamp = "2026-01-01T00:00:05Z".parse().expect("a time");
        let shown = |query: &str| {
            let text = read(&path, &LogOptions::parse(query, now)).expect("read");
            String::from_utf8(text).expect("text")
        };
        assert_eq!(shown(""), "one\ntwo\n\nfour x\n");
        assert_eq!(shown("tailLines=1"), "four x\n");
        assert_eq!(shown("tailLines=0"), "");
        assert_eq!(shown("sinceSeconds=2"), "\nfour x\n");
        assert_eq!(shown("limitBytes=5"), "one\nt");
        assert_eq!(shown("timestamps=true&tailLines=1"), "2026-01-01T00:00:04Z four x\n");
        assert_eq!(shown("sinceTime=2026-01-01T00%3A00%3A04Z"), "four x\n");
    }
}
