//! Attachments: who else gets what a container writes, and who writes to it.
//!
//! An attachment lives as long as its connection. What it is given goes into a pipe of the agent;
//! while that is full the container's stream is not read, so that nothing is lost and nothing is
//! gathered here: whoever attaches and does not read holds the container up, as a terminal does.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::epoll;
use rustix::io::Errno;

use super::containers::Container;
use super::{ClientId, Shim, Source};
use crate::protocol::{AtEnd, Reply};

/// What a pipe is widened to when its container has ended; what all may have.
const WIDE: usize = 1 << 20;

/// One stream of one attachment.
pub(super) struct Tap {
    client: ClientId,
    fd: OwnedFd,
    /// What did not fit into the pipe.
    behind: Vec<u8>,
    /// Its number in the epoll, while it is behind.
    source: Option<u64>,
}

impl Tap {
    /// Passes bytes on, or keeps them while the pipe is full.
    pub(super) fn give(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.behind.extend_from_slice(bytes);
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.behind.is_empty() {
            match rustix::io::write(&self.fd, &self.behind) {
                Ok(count) => drop(self.behind.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Makes room for the last that comes.
    pub(super) fn widen(&mut self) {
        let _ = rustix::pipe::fcntl_setpipe_size(&self.fd, WIDE);
        let _ = self.flush();
    }
}

impl Shim {
    pub(super) fn attach_output(&mut self, client: ClientId, id: &str, fds: Vec<OwnedFd>) {
        let Some(container) = self.containers.get_mut(id) else {
            return self.tell(client, &Reply::NotRunning);
        };
        for (output, fd) in container.outputs.iter_mut().zip(fds) {
            // A stream that has ended is told by closing its pipe.
            if let Some(output) = output {
                let _ = rustix::io::ioctl_fionbio(&fd, true);
                output.taps.push(Tap { client, fd, behind: Vec::new(), source: None });
            }
        }
        self.tell(client, &Reply::Attached);
    }

    pub(super) fn attach_input(&mut self, client: ClientId, id: &str, at_end: AtEnd) {
        let Some(container) = self.containers.get_mut(id) else {
            return self.tell(client, &Reply::NotRunning);
        };
        if at_end == AtEnd::CloseInput {
            container.once.push(client);
        }
        let fd = input_of(container).and_then(|fd| fd.try_clone().ok());
        let fds: Vec<OwnedFd> = fd.into_iter().collect();
        self.tell_with(client, &Reply::Attached, &fds);
    }

    /// Ends whatever attachment a connection stood for.
    pub(super) fn detach(&mut self, client: ClientId) {
        let ids: Vec<String> = self.containers.keys().cloned().collect();
        for id in ids {
            let Some(container) = self.containers.get_mut(&id) else { continue };
            if container.once.contains(&client) {
                container.once.clear();
                container.input = None;
            }
            for output in container.outputs.iter_mut().flatten() {
                output.taps.retain(|tap| tap.client != client);
            }
            self.arrange(&id, 0);
            self.arrange(&id, 1);
        }
    }

    /// A pipe has room again.
    pub(super) fn tap_ready(&mut self, id: &str, stream: usize) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Some(output) = &mut container.outputs[stream] {
            output.taps.retain_mut(|tap| tap.flush().is_ok());
        }
        self.arrange(id, stream);
    }

    /// Listens to the pipes that are full, and to the container's stream only when none is.
    pub(super) fn arrange(&mut self, id: &str, stream: usize) {
        let Shim { containers, sources, epoll, next_source, .. } = self;
        let output = containers.get_mut(id).and_then(|c| c.outputs[stream].as_mut());
        if output.as_ref().is_some_and(|output| output.taps.is_empty() && !output.paused) {
            return;
        }
        let alive = |number: &u64| {
            let taps = output.iter().flat_map(|output| &output.taps);
            taps.filter_map(|tap| tap.source).any(|source| source == *number)
        };
        let source = Source::Tap { container: id.to_string(), stream };
        sources.retain(|number, known| *known != source || alive(number));
        let Some(output) = output else { return };
        for tap in &mut output.taps {
            match (tap.behind.is_empty(), tap.source) {
                (false, None) => {
                    *next_source += 1;
                    let data = epoll::EventData::new_u64(*next_source);
                    if epoll::add(&*epoll, &tap.fd, data, epoll::EventFlags::OUT).is_ok() {
                        sources.insert(*next_source, source.clone());
                        tap.source = Some(*next_source);
                    }
                }
                (true, Some(number)) => {
                    let _ = epoll::delete(&*epoll, &tap.fd);
                    sources.remove(&number);
                    tap.source = None;
                }
                _ => {}
            }
        }
        let behind = output.taps.iter().any(|tap| tap.source.is_some());
        if behind != output.paused {
            output.paused = behind;
            let data = epoll::EventData::new_u64(output.source);
            let _ = match behind {
                true => epoll::delete(&*epoll, output.fd()),
                false => epoll::add(&*epoll, output.fd(), data, epoll::EventFlags::IN),
            };
        }
    }
}

/// What is written to, to reach a container's standard input: its pipe or its terminal.
fn input_of(container: &Container) -> Option<&OwnedFd> {
    container.input.as_ref().or_else(|| container.terminal())
}
