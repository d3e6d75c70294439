//! What travels between the ranks: one datagram for each message.
//!
//! A datagram is a header of 16 bytes (magic, protocol version, length of the JSON; little endian),
//! the message as JSON, and the payload of a contribution. The version is checked before anything
//! behind it is read, so every version can refuse every other one by name.

use super::error::RendezvousError;
use super::limits::{MAX_LABEL_BYTES, MAX_MESSAGE_BYTES, MAX_REASON_BYTES, truncated};
use super::peer::Peer;
use super::reasons::Refusal;
use super::socket::duplicate;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// One rank's message in an exchange, and the file descriptor that came with it.
pub type MessageWithFd = (Vec<u8>, Option<OwnedFd>);

/// Raise this whenever a message's meaning changes.
pub(super) const VERSION: u32 = 2;
/// The longest datagram. The two longest hold a message of `MAX_MESSAGE_BYTES`, or a reason of
/// `MAX_REASON_BYTES` control characters, for each of which JSON takes six bytes.
pub(super) const MAX_DATAGRAM_BYTES: usize = 48 << 10;
/// How often rank 0 tells waiting ranks which ranks are missing.
pub(super) const PENDING_INTERVAL: Duration = Duration::from_millis(250);

const MAGIC: [u8; 8] = *b"peersum\0";
const HEADER_BYTES: usize = 16;

/// A message, without a contribution's payload and file descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) enum Message {
    /// A process asks rank 0 for its rank.
    Join { group: GroupIdentity, peer: Peer },
    /// The group is complete: its members in rank order.
    Welcome { peers: Vec<Peer> },
    /// Rank 0 turns the process away.
    Refused(Refusal),
    /// Rank 0 still waits. During `join` this also says that the process has its rank.
    Pending { missing: Vec<u32> },
    /// What `rank` gives to an exchange: its own to rank 0, everybody's from rank 0.
    Contribution { rank: u32, label: String },
    /// The group has failed.
    Failure(Failure),
}

/// What all ranks of a group have in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GroupIdentity {
    pub(super) name: String,
    /// How the launcher tells its runs apart; empty if it does not.
    pub(super) run: String,
    pub(super) world_size: u32,
}

/// The errors that a rank tells the others, with the fields of [`RendezvousError`] in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Failure {
    Timeout(u32, String, Duration, Vec<u32>),
    PeerLost(u32, String),
    PeerFailed(u32, String),
    LabelMismatch(u32, String, u32, String),
    Protocol(u32, String),
}

impl Message {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Join { .. } => "Join",
            Self::Welcome { .. } => "Welcome",
            Self::Refused(_) => "Refused",
            Self::Pending { .. } => "Pending",
            Self::Contribution { .. } => "Contribution",
            Self::Failure(_) => "Failure",
        }
    }

    /// `sender` failed with `error`, or passes on what another rank failed with.
    pub(super) fn failure(error: &RendezvousError, sender: u32) -> Self {
        use RendezvousError as E;
        let reason = |text: &str| truncated(text, MAX_REASON_BYTES).to_owned();
        Self::Failure(match error.clone() {
            // Each receiver adds where it is itself.
            E::Timeout {
                rank,
                during,
                waited,
                missing,
                at: _,
            } => Failure::Timeout(rank, during, waited, missing),
            E::PeerLost { rank, during } => Failure::PeerLost(rank, during),
            E::PeerFailed { rank, reason: text } => Failure::PeerFailed(rank, reason(&text)),
            E::LabelMismatch {
                rank,
                label,
                other_rank,
                other_label,
            } => Failure::LabelMismatch(rank, label, other_rank, other_label),
            E::Protocol { rank, detail } => Failure::Protocol(rank, reason(&detail)),
            // Only the sender can have had this error.
            other => Failure::PeerFailed(sender, reason(&other.to_string())),
        })
    }
}

impl From<Failure> for RendezvousError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Timeout(rank, during, waited, missing) => Self::Timeout {
                rank,
                during,
                waited,
                at: Box::default(),
                missing,
            },
            Failure::PeerLost(rank, during) => Self::PeerLost { rank, during },
            Failure::PeerFailed(rank, reason) => Self::PeerFailed { rank, reason },
            Failure::LabelMismatch(rank, label, other_rank, other_label) => Self::LabelMismatch {
                rank,
                label,
                other_rank,
                other_label,
            },
            Failure::Protocol(rank, detail) => Self::Protocol { rank, detail },
        }
    }
}

/// A datagram to send, shared by the connections that it goes to.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) bytes: Vec<u8>,
    pub(super) descriptor: Option<OwnedFd>,
}

impl Packet {
    pub(super) fn new(message: &Message) -> Arc<Self> {
        Self::with_payload(message, &[], None)
    }

    /// What `rank` gives to the exchange `label`. The caller has checked the lengths.
    pub(super) fn contribution(
        rank: u32,
        label: &str,
        (payload, descriptor): &MessageWithFd,
    ) -> Result<Arc<Self>, RendezvousError> {
        let label = label.to_owned();
        let contribution = Message::Contribution { rank, label };
        let descriptor = descriptor.as_ref().map(AsFd::as_fd);
        let descriptor = descriptor.map(duplicate).transpose()?;
        Ok(Self::with_payload(&contribution, payload, descriptor))
    }

    fn with_payload(message: &Message, payload: &[u8], descriptor: Option<OwnedFd>) -> Arc<Self> {
        // Numbers, texts and lists of them can always be written as JSON.
        let json = serde_json::to_vec(message).unwrap_or_default();
        let (version, length) = (VERSION.to_le_bytes(), (json.len() as u32).to_le_bytes());
        let bytes = [&MAGIC[..], &version, &length, &json, payload].concat();
        Arc::new(Self { bytes, descriptor })
    }
}

/// A datagram that was received.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) message: Message,
    pub(super) payload: Vec<u8>,
    pub(super) descriptor: Option<OwnedFd>,
}

/// Why a connection can no longer be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("it speaks protocol version {theirs}, this is version {VERSION}")]
    Version { theirs: u32 },
    /// The datagram is not one of this protocol.
    #[error("{0}")]
    Malformed(String),
    #[error(transparent)]
    Errno(#[from] Errno),
}

impl ConnectionError {
    /// The error to report when the other end is `rank`.
    pub(super) fn by_rank(self, rank: u32) -> RendezvousError {
        match self {
            // Rank 0 refuses what it cannot read, so its answer need not be read either.
            Self::Version { theirs } if rank == 0 => RendezvousError::Refused(Refusal::Version {
                ours: theirs,
                theirs: VERSION,
            }),
            Self::Errno(errno) => RendezvousError::io("exchange with another rank", errno),
            error => RendezvousError::Protocol {
                rank,
                detail: error.to_string(),
            },
        }
    }
}

impl Frame {
    pub(super) fn decode(
        bytes: &[u8],
        descriptor: Option<OwnedFd>,
    ) -> Result<Self, ConnectionError> {
        let malformed = |what: String| ConnectionError::Malformed(what);
        let (header, rest) = bytes
            .split_first_chunk::<HEADER_BYTES>()
            .filter(|(header, _)| header.starts_with(&MAGIC))
            .ok_or_else(|| malformed("what it sent is not a rendezvous message".into()))?;
        let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|index| header[at + index]));
        if number(8) != VERSION {
            return Err(ConnectionError::Version { theirs: number(8) });
        }
        let (json, payload) = rest
            .split_at_checked(number(12) as usize)
            .ok_or_else(|| malformed("a message that ends too early".into()))?;
        let message: Message = serde_json::from_slice(json)
            .map_err(|error| malformed(format!("a message that cannot be read: {error}")))?;
        let label_bytes = match &message {
            Message::Contribution { label, .. } => label.len(),
            _ => 0,
        };
        for (what, length, limit) in [
            ("label", label_bytes, MAX_LABEL_BYTES),
            ("payload", payload.len(), MAX_MESSAGE_BYTES),
        ] {
            if length > limit {
                return Err(malformed(format!(
                    "a {what} of {length} bytes, {limit} are allowed"
                )));
            }
        }
        let carries = !payload.is_empty() || descriptor.is_some();
        if carries && !matches!(message, Message::Contribution { .. }) {
            let name = message.name();
            return Err(malformed(format!(
                "a {name} message with something behind it"
            )));
        }
        Ok(Self {
            message,
            payload: payload.to_vec(),
            descriptor,
        })
    }
}

#[cfg(test)]
mod tests;
