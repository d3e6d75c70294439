//! A thread of rank 0 that answers processes which ask to join after the group is complete.

use super::admission::{Admission, refuse};
use super::connection::Connection;
use super::error::RendezvousError;
use super::peer::Peer;
use super::reasons::Refusal;
use super::socket;
use super::step::{Progress, Step};
use std::time::Duration;

/// Answers until it is dropped, so that a late process learns why it cannot join.
#[derive(Debug)]
pub(super) struct LateRankAnswerer {
    /// The thread ends once this is shut down. The closing of a pipe would not do: a child that
    /// fork made may have it open as well.
    stop: Connection,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl LateRankAnswerer {
    pub(super) fn spawn(admission: Admission, holders: Vec<Peer>) -> Result<Self, RendezvousError> {
        let (stop, stopped) = socket::pair()?;
        let thread = std::thread::Builder::new()
            .name("peersum-late".into())
            .spawn(move || answer(admission, Connection::new(stopped), &holders))
            .map_err(|error| {
                RendezvousError::io("start the thread that answers late ranks", error)
            })?;
        Ok(Self {
            stop: Connection::new(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for LateRankAnswerer {
    fn drop(&mut self) {
        self.stop.shut_down();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that answers late ranks panicked");
        }
    }
}

fn answer(mut admission: Admission, mut stopped: Connection, holders: &[Peer]) {
    let until_stopped = Step::begin(0, "late ranks", Duration::MAX);
    let result = until_stopped.run(
        &mut (&mut admission, &mut stopped),
        |(admission, stopped)| {
            if stopped.pump().is_err() || stopped.is_lost() {
                return Ok(Progress::Done(()));
            }
            for (peer, connection) in admission.advance()?.candidates {
                let holder = holders.get(peer.rank as usize);
                let refusal = Refusal::AlreadyFormed {
                    group: admission.group.name.clone(),
                    rank: peer.rank,
                    pid: holder.map_or(0, |holder| holder.process.pid),
                };
                refuse(connection, refusal);
            }
            Ok(Progress::Missing(Vec::new()))
        },
    );
    if let Err(error) = result {
        tracing::warn!(%error, "late ranks are no longer answered");
    }
}
