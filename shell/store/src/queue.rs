//! What waits for the writer, and when the writer is told.
//!
//! Who has several commands to send sends them together: were the writer told of the first at once,
//! it would make that one durable alone, and the others wait for it.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::StoreError;
use crate::writer::{Job, Message};

/// So many messages are enough to begin with, though more may follow.
const MANY: usize = 32;
/// Who does something else more often than this between two commands has other work.
const FEW: u32 = 4;

/// Messages in order, from many threads to one.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    messages: VecDeque<Message>,
    /// How many are not done sending.
    senders: usize,
    /// How often something else was done since something was sent.
    turns: u32,
    closed: bool,
}

/// Somebody is sending messages that belong together.
#[derive(Debug)]
pub(crate) struct Sending<'a>(&'a Queue);

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        waiting.senders -= 1;
        if !waiting.messages.is_empty() {
            self.0.news.notify_one();
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a message; the writer is told unless more are to follow.
    pub(crate) fn send(&self, message: Message) -> Result<(), StoreError> {
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(StoreError::Closed);
        }
        waiting.messages.push_back(message);
        if waiting.senders == 0 || waiting.messages.len() == MANY {
            self.news.notify_one();
        }
        Ok(())
    }

    /// More messages will follow, for as long as the answer lives.
    pub(crate) fn begin(&self) -> Sending<'_> {
        self.lock().senders += 1;
        Sending(self)
    }

    /// The only command that waits, if it is of somebody who does little else, and what is
    /// `at_hand` for it, if there is something. The caller `did` something, to send or else.
    pub(crate) fn lone<T>(
        &self,
        did: bool,
        at_hand: impl FnOnce() -> Option<T>,
    ) -> Option<(Box<Job>, T)> {
        let mut waiting = self.lock();
        if waiting.messages.is_empty() {
            waiting.turns = waiting.turns.saturating_add(did.into());
            return None;
        }
        let quiet = mem::take(&mut waiting.turns) <= FEW;
        let [Message::Write(_)] = waiting.messages.make_contiguous() else { return None };
        let tool = quiet.then(at_hand)??;
        match waiting.messages.pop_front() {
            Some(Message::Write(job)) => Some((job, tool)),
            _ => None,
        }
    }

    /// The next message, if there is one.
    pub(crate) fn take(&self) -> Option<Message> {
        self.lock().messages.pop_front()
    }

    /// Waits until there is a message, or for so long.
    pub(crate) fn wait(&self, longest: Option<Duration>) {
        let empty = |waiting: &mut Waiting| waiting.messages.is_empty();
        // A panic elsewhere does not damage a list of messages.
        match longest {
            None => drop(self.news.wait_while(self.lock(), empty)),
            Some(time) => drop(self.news.wait_timeout_while(self.lock(), time, empty)),
        }
    }

    /// From now on nobody takes messages; who waits for an answer is told so.
    pub(crate) fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        waiting.messages.clear();
    }
}
