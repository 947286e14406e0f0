//! One thread that waits for what all shims have to tell.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, epoll, eventfd};

use crate::protocol::{self, Reply, Request};
use crate::runtime::Inner;

/// The event of the descriptor that ends the thread.
const STOP: u64 = 0;

/// The thread; it ends with this value.
pub(crate) struct Watcher {
    shared: Arc<Shared>,
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    inner: Arc<Inner>,
    epoll: OwnedFd,
    links: Mutex<Links>,
}

#[derive(Default)]
struct Links {
    next: u64,
    by_number: BTreeMap<u64, (String, Arc<OwnedFd>)>,
}

impl Watcher {
    pub(crate) fn start(inner: Arc<Inner>) -> io::Result<Watcher> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        epoll::add(&epoll, &stop, epoll::EventData::new_u64(STOP), epoll::EventFlags::IN)?;
        let shared = Arc::new(Shared { inner, epoll, links: Mutex::default() });
        let ours = shared.clone();
        let thread =
            std::thread::Builder::new().name("pod-shims".into()).spawn(move || ours.run())?;
        Ok(Watcher { shared, stop, thread: Some(thread) })
    }

    /// Subscribes to the shim of a sandbox, and waits until what it says first has been noted.
    pub(crate) fn adopt(&self, sandbox: &str) {
        self.shared.adopt(sandbox);
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn adopt(&self, sandbox: &str) {
        if self.subscribe(sandbox).is_err() {
            self.inner.shim_died(sandbox);
        }
    }

    fn subscribe(&self, sandbox: &str) -> io::Result<()> {
        let socket = protocol::connect(&self.inner.sandbox_dir(sandbox).0)?;
        protocol::send(&socket, &Request::Subscribe, &[])?;
        let hello = protocol::receive::<Reply>(&socket)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.inner.heard(sandbox, &hello.0);
        let mut links = self.links.lock().expect("nothing panics while it holds the links");
        links.next += 1;
        let (number, socket) = (links.next, Arc::new(socket));
        let data = epoll::EventData::new_u64(number);
        epoll::add(&self.epoll, socket.as_fd(), data, epoll::EventFlags::IN)?;
        links.by_number.insert(number, (sandbox.to_string(), socket));
        Ok(())
    }

    fn run(&self) {
        let mut space = [const { std::mem::MaybeUninit::uninit() }; 32];
        loop {
            let ready: Vec<u64> = match epoll::wait(&self.epoll, &mut space, None) {
                Ok((events, _)) => events.iter().map(|event| event.data.u64()).collect(),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "cannot watch the pod shims any more");
                    return;
                }
            };
            if ready.contains(&STOP) {
                return;
            }
            ready.into_iter().for_each(|number| self.hear(number));
        }
    }

    fn hear(&self, number: u64) {
        let links = || self.links.lock().expect("nothing panics while it holds the links");
        let Some((sandbox, socket)) = links().by_number.get(&number).cloned() else { return };
        match protocol::receive::<Reply>(&*socket) {
            Ok(Some((reply, _))) => self.inner.heard(&sandbox, &reply),
            // The shim has ended, or has closed a connection that was read too slowly.
            Ok(None) | Err(_) => {
                links().by_number.remove(&number);
                drop(socket);
                self.adopt(&sandbox);
            }
        }
    }
}
