//! What ranks tell the referee, one JSON object a line.

use peersum::rendezvous::RendezvousError;
use peersum::{AbsentPeer, Error, Failure, SetupStep};
use serde::{Deserialize, Serialize};

/// Where a rank is. A rank that is held there continues when the referee tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Place {
    /// It is about to look for the others.
    Joining,
    /// It is in set-up.
    SetUp(SetupStep),
    /// Its communicator is built.
    Built,
    /// Some of its calls have succeeded and it goes on calling.
    Calling,
    /// Its calls are done and it is about to drop its communicator.
    Leaving,
}

/// What a rank says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Word {
    At(Place),
    /// Its communicator has failed, or was never built.
    Failed(Verdict),
    /// All calls succeeded and the communicator is gone.
    Completed,
    /// Everything of peersum is dropped. Lists the resources that the process did not hold before.
    Left {
        surplus: Vec<String>,
    },
    /// Something that must not happen: a wrong result, or an unexpected error.
    Broken(String),
}

/// An error as the referee judges it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verdict {
    pub(crate) kind: Kind,
    /// The ranks that the error names as the cause.
    pub(crate) names: Vec<u32>,
    pub(crate) text: String,
}

/// The errors that a rank may get when another dies or stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// In set-up: the connection of a rank closed.
    PeerLost,
    /// In set-up: a rank was silent until the deadline.
    SetUpTimeout,
    /// In a call: a rank did not arrive before the deadline.
    PeerTimeout,
    /// In a call: another rank gave up, and told which rank it had waited for.
    PeerFailed,
    /// In set-up of ranks that share a device: the blocks did not run at the same time, which is
    /// true if a rank was stopped.
    NotCoResident,
    /// Any other error, which is a failure of the test.
    Other,
}

/// The ranks that do not run; if there are none, the rank that was waited for.
fn cause(absent: &[AbsentPeer], awaited: u32) -> Vec<u32> {
    match absent {
        [] => vec![awaited],
        absent => absent.iter().map(|peer| peer.rank).collect(),
    }
}

impl Verdict {
    pub(crate) fn new(error: &Error) -> Verdict {
        let (kind, names) = match error {
            Error::Failed(Failure::PeerTimeout { peer, absent, .. }) => {
                (Kind::PeerTimeout, cause(absent, *peer))
            }
            Error::Failed(Failure::PeerFailed {
                origin,
                waited_for,
                absent,
                ..
            }) => (
                Kind::PeerFailed,
                cause(absent, waited_for.unwrap_or(*origin)),
            ),
            Error::Rendezvous(RendezvousError::PeerLost { rank, .. }) => {
                (Kind::PeerLost, vec![*rank])
            }
            Error::Rendezvous(RendezvousError::Timeout { missing, .. }) => {
                (Kind::SetUpTimeout, missing.clone())
            }
            Error::NotCoResident { .. } => (Kind::NotCoResident, Vec::new()),
            _ => (Kind::Other, Vec::new()),
        };
        Verdict {
            kind,
            names,
            text: error.to_string(),
        }
    }
}
