//! A pull as a person sees it: a bar for each layer on a terminal, else a line when one is done.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use knarr_images::{Progress, Stage, Watcher};

const FRAME: Duration = Duration::from_millis(100);
const WIDTH: u64 = 30;

/// What is known of each layer, in the order in which they were told of.
#[derive(Default)]
struct Layers {
    order: Vec<String>,
    known: BTreeMap<String, (u64, Stage)>,
    /// Lines on the terminal that the next frame goes over.
    drawn: usize,
}

/// Shows a pull on standard error.
#[derive(Clone, Default)]
pub(crate) struct Display(Arc<Mutex<Layers>>);

impl Display {
    /// What is to be told of progress.
    pub(crate) fn watcher(&self) -> Watcher {
        let layers = self.0.clone();
        let terminal = std::io::stderr().is_terminal();
        Arc::new(move |news: Progress<'_>| {
            let mut layers = layers.lock().unwrap_or_else(PoisonError::into_inner);
            if !layers.known.contains_key(news.digest) {
                layers.order.push(news.digest.to_owned());
            }
            layers.known.insert(news.digest.to_owned(), (news.size, news.stage));
            if !terminal && matches!(news.stage, Stage::Done | Stage::Present) {
                eprintln!("{}", line(news.digest, news.size, news.stage));
            }
        })
    }

    /// Draws frames on a terminal, for ever.
    pub(crate) async fn draw(&self) -> Infallible {
        if !std::io::stderr().is_terminal() {
            return std::future::pending().await;
        }
        loop {
            self.frame();
            tokio::time::sleep(FRAME).await;
        }
    }

    /// Draws how it ended.
    pub(crate) fn last(&self) {
        if std::io::stderr().is_terminal() {
            self.frame();
        }
    }

    fn frame(&self) {
        let mut layers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        if layers.drawn > 0 {
            // Writing to a String does not fail.
            let _ = write!(text, "\x1b[{}A", layers.drawn);
        }
        for digest in &layers.order {
            let (size, stage) = layers.known[digest];
            let _ = writeln!(text, "\r\x1b[K{}", line(digest, size, stage));
        }
        layers.drawn = layers.order.len();
        // A terminal that went away is no reason to stop.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

fn line(digest: &str, size: u64, stage: Stage) -> String {
    let name: String = digest.trim_start_matches("sha256:").chars().take(12).collect();
    let total = size as f64 / 1e6;
    match stage {
        Stage::Waiting => format!("{name} waiting"),
        Stage::Downloading(length) => {
            let filled = (length.min(size) * WIDTH).checked_div(size).unwrap_or(WIDTH) as usize;
            let (bar, rest) = ("=".repeat(filled), " ".repeat(WIDTH as usize - filled));
            format!("{name} [{bar}{rest}] {:.1}/{total:.1} MB", length as f64 / 1e6)
        }
        Stage::Unpacking => format!("{name} unpacking"),
        Stage::Done => format!("{name} done, {total:.1} MB"),
        Stage::Present => format!("{name} already here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_fills_and_never_overflows() {
        let bar = |length, size| line("sha256:0123456789abcdef", size, Stage::Downloading(length));
        assert!(bar(0, 100).starts_with("0123456789ab [   "));
        assert!(bar(50, 100).contains(&format!("[{}{}]", "=".repeat(15), " ".repeat(15))));
        assert!(bar(200, 100).contains(&"=".repeat(30)));
        assert!(bar(0, 0).contains(&"=".repeat(30)), "nothing to fetch is all fetched");
    }
}
