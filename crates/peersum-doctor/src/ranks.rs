//! Ranks that are threads of this process.

use std::thread;

use peersum::device::DeviceError;
use peersum::rendezvous::RendezvousError;
use peersum::{Error, Rendezvous};

/// Runs `rank` once a stream, in threads that form a group. What each returned, in the streams'
/// order.
///
/// # Errors
/// The first error that is not merely the consequence of another rank's, with the number of its
/// stream.
pub(crate) fn in_threads<'a, S: Sync + 'a, T: Send>(
    streams: impl IntoIterator<Item = &'a S>,
    rank: impl Fn(&S, Rendezvous) -> Result<T, Error> + Sync,
) -> Result<Vec<T>, (usize, Error)> {
    let streams: Vec<&S> = streams.into_iter().collect();
    let outcomes: Vec<Result<T, Error>> = thread::scope(|scope| {
        let threads: Vec<_> = Rendezvous::threads(streams.len() as u32)
            .into_iter()
            .zip(streams)
            .map(|(rendezvous, stream)| {
                let rank = &rank;
                thread::Builder::new().spawn_scoped(scope, move || rank(stream, rendezvous))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| match thread {
                Ok(thread) => thread.join().unwrap_or_else(|_| Err(panicked())),
                Err(source) => Err(DeviceError::System {
                    call: "clone",
                    source,
                }
                .into()),
            })
            .collect()
    });
    let mut values = Vec::new();
    let mut errors = Vec::new();
    for (index, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Ok(value) => values.push(value),
            Err(error) => errors.push((index, error)),
        }
    }
    let first = errors
        .into_iter()
        .min_by_key(|(_, error)| is_consequence(error));
    first.map_or(Ok(values), Err)
}

/// Whether another rank's error is the cause of this one.
fn is_consequence(error: &Error) -> bool {
    matches!(
        error,
        Error::Rendezvous(RendezvousError::PeerFailed { .. } | RendezvousError::PeerLost { .. })
    )
}

fn panicked() -> Error {
    DeviceError::Driver {
        call: "a check of the doctor",
        message: "it panicked, which is a defect; the panic's message is on stderr".to_owned(),
    }
    .into()
}
