//! Reading container logs (CRI format: `TIME STREAM F|P TEXT`), and following them as they grow.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use jiff::Timestamp;
use rustix::fs::inotify;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::query::Query;

/// Bytes read at a time.
const BLOCK: usize = 64 << 10;

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
    /// Go on until the container ends.
    pub(crate) follow: bool,
    /// Only this stream (`stdout`, `stderr`).
    pub(crate) stream: Option<&'static [u8]>,
}

impl LogOptions {
    /// Reads a query.
    pub(crate) fn parse(query: &Query, now: Timestamp) -> Self {
        let number = |key: &str| query.get(key).and_then(|value| value.parse().ok());
        let seconds = query.get("sinceSeconds").and_then(|value| value.parse().ok());
        let ago = seconds.map(jiff::SignedDuration::from_secs);
        let since = ago.and_then(|ago| now.saturating_sub(ago).ok());
        Self {
            tail: number("tailLines"),
            since: since.or_else(|| query.get("sinceTime")?.parse().ok()),
            timestamps: query.flag("timestamps"),
            limit: number("limitBytes"),
            previous: query.flag("previous"),
            follow: query.flag("follow"),
            stream: match query.get("stream") {
                Some("Stdout") => Some(b"stdout"),
                Some("Stderr") => Some(b"stderr"),
                _ => None,
            },
        }
    }
}

/// A log on its way to its reader.
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    options: LogOptions,
    /// The beginning of a line whose end is not there yet.
    rest: Vec<u8>,
    /// The line before goes on in the next record: it was too long for one.
    open: bool,
    left: usize,
}

impl Log {
    /// Opens a log where its reader wants to begin.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn open(path: &Path, options: LogOptions) -> io::Result<Self> {
        let mut file = File::open(path)?;
        if let Some(lines) = options.tail {
            let at = tail(&mut file, lines)?;
            file.seek(SeekFrom::Start(at))?;
        }
        let left = options.limit.unwrap_or(usize::MAX);
        Ok(Self { path: path.to_owned(), file, options, rest: Vec::new(), open: false, left })
    }

    /// The next piece for the reader; `None` when there is no more now.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn read(&mut self) -> io::Result<Option<Bytes>> {
        let mut out = Vec::new();
        while out.is_empty() && self.left > 0 {
            let before = self.rest.len();
            self.rest.resize(before + BLOCK, 0);
            let count = self.file.read(&mut self.rest[before..])?;
            self.rest.truncate(before + count);
            if count == 0 && !self.rotated()? {
                return Ok(None);
            }
            self.render(&mut out);
        }
        out.truncate(self.left);
        self.left -= out.len();
        Ok((!out.is_empty()).then(|| out.into()))
    }

    /// Whether there is a new file at the path; it is read from then on.
    fn rotated(&mut self) -> io::Result<bool> {
        let Ok(next) = File::open(&self.path) else { return Ok(false) };
        let same =
            |a: &File, b: &File| Ok::<_, io::Error>(a.metadata()?.ino() == b.metadata()?.ino());
        if same(&next, &self.file)? {
            return Ok(false);
        }
        // What was written to the old one between its last read and the new one's making.
        let Self { file, rest, .. } = self;
        file.read_to_end(rest)?;
        self.file = next;
        Ok(true)
    }

    /// Whether nothing more is wanted, however much will come.
    fn is_done(&self) -> bool {
        self.left == 0
    }

    /// Turns whole lines of the file into what is shown.
    fn render(&mut self, out: &mut Vec<u8>) {
        let rest = std::mem::take(&mut self.rest);
        let mut lines = rest.split_inclusive(|byte| *byte == b'\n').peekable();
        while let Some(line) = lines.next_if(|line| line.ends_with(b"\n")) {
            self.line(&line[..line.len() - 1], out);
        }
        self.rest = lines.next().unwrap_or_default().to_vec();
    }

    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let (Some(time), Some(stream), Some(tag)) = (parts.next(), parts.next(), parts.next())
        else {
            return;
        };
        if self.options.stream.is_some_and(|wanted| wanted != stream) || self.is_old(time) {
            return;
        }
        if self.options.timestamps && !self.open {
            out.extend([time, b" "].concat());
        }
        out.extend_from_slice(parts.next().unwrap_or_default());
        self.open = tag == b"P";
        if !self.open {
            out.push(b'\n');
        }
    }

    fn is_old(&self, time: &[u8]) -> bool {
        let at = || std::str::from_utf8(time).ok()?.parse::<Timestamp>().ok();
        self.options.since.is_some_and(|since| at().is_none_or(|at| at < since))
    }
}

/// Where the last that many lines of a file begin, read from its end.
fn tail(file: &mut File, lines: usize) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut block = vec![0; BLOCK];
    let (mut left, mut at_end) = (lines, true);
    while end > 0 {
        let begin = end.saturating_sub(BLOCK as u64);
        let block = &mut block[..usize::try_from(end - begin).unwrap_or(BLOCK)];
        file.seek(SeekFrom::Start(begin))?;
        file.read_exact(block)?;
        for at in (0..block.len()).rev() {
            // The end of the last line is not the beginning of another.
            let ends = block[at] == b'\n' && !std::mem::take(&mut at_end);
            at_end = false;
            if lines == 0 || ends && left == 1 {
                return Ok(begin + at as u64 + 1);
            }
            left -= usize::from(ends);
        }
        end = begin;
    }
    Ok(0)
}

/// A log that is followed while its container runs.
pub(crate) struct Follow {
    log: Log,
    /// Tells when something happened in the log's folder.
    news: pipe::Receiver,
    /// Tells when some container has ended.
    exits: watch::Receiver<u64>,
}

impl Follow {
    /// # Errors
    /// The folder cannot be watched.
    pub(crate) fn new(log: Log, exits: watch::Receiver<u64>) -> io::Result<Self> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let watcher = inotify::init(flags)?;
        let folder = log.path.parent().unwrap_or(Path::new("/"));
        let events = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&watcher, folder, events)?;
        let news = pipe::Receiver::from_owned_fd_unchecked(watcher)?;
        Ok(Self { log, news, exits })
    }

    /// The next piece; `None` when the container has ended and all of it is out. `runs` says
    /// whether it still runs.
    pub(crate) async fn next(&mut self, runs: impl Fn() -> bool) -> Option<Bytes> {
        loop {
            self.exits.mark_unchanged();
            // Asked before the file is read: what it wrote last is there when it has ended.
            let running = runs();
            match self.log.read() {
                Ok(Some(bytes)) => return Some(bytes),
                Ok(None) if running && !self.log.is_done() => {}
                Ok(None) | Err(_) => return None,
            }
            let mut events = [0; 4096];
            tokio::select! {
                read = self.news.read(&mut events) => drop(read.ok()?),
                changed = self.exits.changed() => changed.ok()?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(path: &Path, query: &str) -> String {
        let now: Timestamp = "2026-01-01T00:00:05Z".parse().expect("a time");
        let options = LogOptions::parse(&Query::parse(query), now);
        let mut log = Log::open(path, options).expect("opened");
        let mut text = Vec::new();
        while let Some(bytes) = log.read().expect("read") {
            text.extend_from_slice(&bytes);
        }
        String::from_utf8(text).expect("text")
    }

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
        let shown = |query: &str| read(&path, query);
        assert_eq!(shown(""), "one\ntwo\n\nfour x\n");
        assert_eq!(shown("tailLines=1"), "four x\n");
        assert_eq!(shown("tailLines=2"), "\nfour x\n");
        assert_eq!(shown("tailLines=0"), "");
        assert_eq!(shown("tailLines=100"), "one\ntwo\n\nfour x\n");
        assert_eq!(shown("sinceSeconds=2"), "\nfour x\n");
        assert_eq!(shown("limitBytes=5"), "one\nt");
        assert_eq!(shown("timestamps=true&tailLines=1"), "2026-01-01T00:00:04Z four x\n");
        assert_eq!(shown("sinceTime=2026-01-01T00%3A00%3A04Z"), "four x\n");
        assert_eq!(shown("stream=Stderr"), "two\n");
        assert_eq!(shown("stream=Stdout"), "one\n\nfour x\n");
    }

    #[test]
    fn the_tail_of_a_long_log_is_found_from_its_end() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("0.log");
        let line = |at: usize| format!("2026-01-01T00:00:01Z stdout F {at:0100}\n");
        std::fs::write(&path, (0..2000).map(line).collect::<String>()).expect("written");
        let text = read(&path, "tailLines=1500");
        assert_eq!(text.lines().count(), 1500);
        assert_eq!(text.lines().next(), Some(format!("{:0100}", 500).as_str()));
    }

    #[tokio::test]
    async fn a_followed_log_is_complete_over_a_rotation_and_the_end() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("0.log");
        let line = |text: &str| format!("2026-01-01T00:00:01Z stdout F {text}\n");
        std::fs::write(&path, line("one")).expect("written");
        let (exited, exits) = watch::channel(0);
        let log = Log::open(&path, LogOptions::default()).expect("opened");
        let mut follow = Follow::new(log, exits).expect("followed");
        let running = std::sync::atomic::AtomicBool::new(true);
        let runs = || running.load(std::sync::atomic::Ordering::SeqCst);
        assert_eq!(follow.next(runs).await.as_deref(), Some(&b"one\n"[..]));
        let mut file = File::options().append(true).open(&path).expect("opened");
        let (got, ()) = tokio::join!(follow.next(runs), async {
            tokio::task::yield_now().await;
            file.write_all(line("two").as_bytes()).expect("written");
        });
        assert_eq!(got.as_deref(), Some(&b"two\n"[..]));
        // More for the old file, after a new one has taken its place.
        std::fs::rename(&path, dir.path().join("0.log.old")).expect("renamed");
        std::fs::write(&path, line("four")).expect("written");
        file.write_all(line("three").as_bytes()).expect("written");
        let mut text = follow.next(runs).await.expect("more").to_vec();
        text.extend(follow.next(runs).await.unwrap_or_default());
        assert_eq!(String::from_utf8_lossy(&text), "three\nfour\n");
        let (end, ()) = tokio::join!(follow.next(runs), async {
            tokio::task::yield_now().await;
            running.store(false, std::sync::atomic::Ordering::SeqCst);
            exited.send_modify(|count| *count += 1);
        });
        assert_eq!(end, None);
    }
}
