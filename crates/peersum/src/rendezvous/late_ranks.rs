//! A thread of rank 0 that answers processes which ask to join after the group is complete.

use super::admission::{Admission, refuse};
use super::error::RendezvousError;
use super::peer::Peer;
use super::reasons::Refusal;
use super::step::{Progress, Step, Wakeup, Watch};
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// Answers until it is dropped, so that a late process learns why it cannot join.
#[derive(Debug)]
pub(super) struct LateRankAnswerer {
    /// An event counter; the thread ends once it is not 0. The closing of a pipe would not do: a
    /// child that fork made may have it open as well.
    stop: Arc<OwnedFd>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl LateRankAnswerer {
    pub(super) fn spawn(admission: Admission, holders: Vec<Peer>) -> Result<Self, RendezvousError> {
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| RendezvousError::io("create an event counter", error))?;
        let stop = Arc::new(stop);
        let answering = Answering {
            admission,
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::Builder::new()
            .name("peersum-late".into())
            .spawn(move || answering.run(&holders))
            .map_err(|error| {
                RendezvousError::io("start the thread that answers late ranks", error)
            })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for LateRankAnswerer {
    fn drop(&mut self) {
        if let Err(error) =
            rustix::io::retry_on_intr(|| rustix::io::write(&self.stop, &1_u64.to_ne_bytes()))
        {
            // The thread is left alone: it might never end.
            tracing::error!(%error, "cannot end the thread that answers late ranks");
            return;
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that answers late ranks panicked");
        }
    }
}

struct Answering {
    admission: Admission,
    stop: Arc<OwnedFd>,
}

impl Answering {
    fn run(mut self, holders: &[Peer]) {
        let until_stopped = Step::begin(0, "late ranks", Duration::MAX);
        let result = until_stopped.run(&mut self, |own| {
            if rustix::io::read(&*own.stop, &mut [0; 8]).is_ok() {
                return Ok(Progress::Done(()));
            }
            for (peer, connection) in own.admission.advance()?.candidates {
                let holder = holders.get(peer.rank as usize);
                let refusal = Refusal::AlreadyFormed {
                    group: own.admission.group().name.clone(),
                    rank: peer.rank,
                    pid: holder.map_or(0, |holder| holder.process.pid),
                };
                refuse(connection, refusal);
            }
            Ok(Progress::Missing(Vec::new()))
        });
        if let Err(error) = result {
            tracing::warn!(%error, "late ranks are no longer answered");
        }
    }
}

impl Watch for Answering {
    fn watch<'a>(&'a self, wakeup: &mut Wakeup<'a>) {
        wakeup.on(PollFd::new(&self.stop, PollFlags::IN));
        self.admission.watch(wakeup);
    }
}
