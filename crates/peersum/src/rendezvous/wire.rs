//! What travels between the ranks: length-prefixed frames, little endian, every length checked before it is believed.

use super::error::{Refusal, RendezvousError};
use super::peer::{Peer, ProcessId};
use std::time::Duration;

/// Raised whenever a frame's meaning changes.
pub(super) const VERSION: u32 = 1;
pub(super) const HEADER_BYTES: usize = 24;
const MAGIC: [u8; 8] = *b"peersum\0";

/// What a frame may hold at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) label_bytes: usize,
    pub(super) body_bytes: usize,
    pub(super) descriptors: usize,
}

impl Limits {
    /// Before a connection has said who it is.
    pub(super) const STRANGER: Limits = Limits {
        label_bytes: 0,
        body_bytes: 1024,
        descriptors: 0,
    };
    /// Once it has a rank.
    pub(super) const MEMBER: Limits = Limits {
        label_bytes: super::MAX_LABEL_BYTES,
        body_bytes: super::MAX_MESSAGE_BYTES,
        descriptors: super::MAX_DESCRIPTORS,
    };
}

/// The meaning of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Kind {
    /// A process asks for its rank. Body: [`Hello`].
    Hello = 1,
    /// The group is complete. Body: the roster.
    Welcome = 2,
    /// The process is turned away. Body: [`Refusal`].
    Refused = 3,
    /// Rank 0 still waits. Body: the missing ranks. During `join` it also says that the rank asked for is granted.
    Pending = 4,
    /// A rank's part of an exchange, on its way to rank 0.
    Contribution = 5,
    /// A rank's part of an exchange, handed on by rank 0.
    Part = 6,
    /// The group has failed. Body: the error.
    Failure = 7,
}

impl Kind {
    fn from_wire(value: u16) -> Option<Self> {
        [
            Self::Hello,
            Self::Welcome,
            Self::Refused,
            Self::Pending,
            Self::Contribution,
            Self::Part,
            Self::Failure,
        ]
        .into_iter()
        .find(|&kind| kind as u16 == value)
    }
}

/// A frame's fixed part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) descriptors: usize,
    /// The rank that the frame speaks of.
    pub(super) rank: u32,
    pub(super) label_bytes: usize,
    pub(super) body_bytes: usize,
}

/// Bytes that are not a frame, or not one that is allowed here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(pub(super) String);

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&(self.kind as u16).to_le_bytes());
        bytes[10..12].copy_from_slice(&(self.descriptors as u16).to_le_bytes());
        bytes[12..16].copy_from_slice(&self.rank.to_le_bytes());
        bytes[16..20].copy_from_slice(&(self.label_bytes as u32).to_le_bytes());
        bytes[20..24].copy_from_slice(&(self.body_bytes as u32).to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; HEADER_BYTES], limits: Limits) -> Result<Self, Malformed> {
        let mut fields = Reader(bytes);
        if fields.bytes(8)? != MAGIC {
            return Err(Malformed("what it sent is not a rendezvous frame".into()));
        }
        let kind = fields.u16()?;
        let kind =
            Kind::from_wire(kind).ok_or_else(|| Malformed(format!("unknown frame kind {kind}")))?;
        let descriptors = usize::from(fields.u16()?);
        let rank = fields.u32()?;
        let label_bytes = fields.u32()? as usize;
        let body_bytes = fields.u32()? as usize;
        for (what, value, limit) in [
            ("label bytes", label_bytes, limits.label_bytes),
            ("message bytes", body_bytes, limits.body_bytes),
            ("file descriptors", descriptors, limits.descriptors),
        ] {
            if value > limit {
                return Err(Malformed(format!(
                    "a frame of {value} {what}, allowed are {limit}"
                )));
            }
        }
        Ok(Self {
            kind,
            descriptors,
            rank,
            label_bytes,
            body_bytes,
        })
    }
}

/// Who a process says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) world_size: u32,
    pub(super) peer: Peer,
    pub(super) group: String,
    /// What the launcher says tells its runs apart; empty if it says nothing.
    pub(super) run: String,
}

impl Hello {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.u32(VERSION);
        writer.u32(self.world_size);
        writer.peer(&self.peer);
        writer.text(&self.group);
        writer.text(&self.run);
        writer.0
    }

    /// The outer error is for bytes that are no hello; the inner one is to be sent back.
    pub(super) fn decode(bytes: &[u8]) -> Result<Result<Self, Refusal>, Malformed> {
        let mut reader = Reader(bytes);
        let theirs = reader.u32()?;
        if theirs != VERSION {
            // Another version may have changed everything that follows.
            return Ok(Err(Refusal::Version {
                ours: VERSION,
                theirs,
            }));
        }
        let hello = Self {
            world_size: reader.u32()?,
            peer: reader.peer()?,
            group: reader.text()?,
            run: reader.text()?,
        };
        reader.end()?;
        Ok(Ok(hello))
    }
}

pub(super) fn encode_roster(peers: &[Peer]) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.u32(peers.len() as u32);
    for peer in peers {
        writer.peer(peer);
    }
    writer.0
}

/// The group's members in rank order.
pub(super) fn decode_roster(bytes: &[u8], world_size: u32) -> Result<Vec<Peer>, Malformed> {
    let mut reader = Reader(bytes);
    let count = reader.u32()?;
    if count != world_size {
        return Err(Malformed(format!(
            "a roster of {count} for a world size of {world_size}"
        )));
    }
    let peers = (0..count)
        .map(|_| reader.peer())
        .collect::<Result<Vec<_>, _>>()?;
    if let Some((rank, peer)) = (0..)
        .zip(&peers)
        .find(|&(rank, peer): &(u32, _)| peer.rank != rank)
    {
        return Err(Malformed(format!(
            "a roster with rank {} in the place of rank {rank}",
            peer.rank
        )));
    }
    reader.end()?;
    Ok(peers)
}

pub(super) fn encode_ranks(ranks: &[u32]) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.ranks(ranks);
    writer.0
}

pub(super) fn decode_ranks(bytes: &[u8]) -> Result<Vec<u32>, Malformed> {
    let mut reader = Reader(bytes);
    let ranks = reader.ranks()?;
    reader.end()?;
    Ok(ranks)
}

pub(super) fn encode_refusal(refusal: &Refusal) -> Vec<u8> {
    let mut writer = Writer::default();
    match refusal {
        Refusal::Version { ours, theirs } => writer.tag(1).u32(*ours).u32(*theirs),
        Refusal::User { ours, theirs } => writer.tag(2).u32(*ours).u32(*theirs),
        Refusal::Group { ours, theirs } => writer.tag(3).text(ours).text(theirs),
        Refusal::Run { ours, theirs } => writer.tag(4).text(ours).text(theirs),
        Refusal::WorldSize { ours, theirs } => writer.tag(5).u32(*ours).u32(*theirs),
        Refusal::Rank { rank } => writer.tag(6).u32(*rank),
        Refusal::RankTaken { rank, pid } => writer.tag(7).u32(*rank).u32(*pid),
        Refusal::AlreadyFormed { group, rank, pid } => {
            writer.tag(8).text(group).u32(*rank).u32(*pid)
        }
    };
    writer.0
}

pub(super) fn decode_refusal(bytes: &[u8]) -> Result<Refusal, Malformed> {
    let mut reader = Reader(bytes);
    let refusal = match reader.u16()? {
        1 => Refusal::Version {
            ours: reader.u32()?,
            theirs: reader.u32()?,
        },
        2 => Refusal::User {
            ours: reader.u32()?,
            theirs: reader.u32()?,
        },
        3 => Refusal::Group {
            ours: reader.text()?,
            theirs: reader.text()?,
        },
        4 => Refusal::Run {
            ours: reader.text()?,
            theirs: reader.text()?,
        },
        5 => Refusal::WorldSize {
            ours: reader.u32()?,
            theirs: reader.u32()?,
        },
        6 => Refusal::Rank {
            rank: reader.u32()?,
        },
        7 => Refusal::RankTaken {
            rank: reader.u32()?,
            pid: reader.u32()?,
        },
        8 => Refusal::AlreadyFormed {
            group: reader.text()?,
            rank: reader.u32()?,
            pid: reader.u32()?,
        },
        tag => return Err(Malformed(format!("unknown refusal {tag}"))),
    };
    reader.end()?;
    Ok(refusal)
}

/// `rank` is the sender's, for errors that only it can have had.
pub(super) fn encode_failure(error: &RendezvousError, rank: u32) -> Vec<u8> {
    let mut writer = Writer::default();
    match error {
        RendezvousError::Timeout {
            rank,
            during,
            waited,
            missing,
            at: _,
        } => writer
            .tag(1)
            .u32(*rank)
            .text(during)
            .u64(waited.as_nanos() as u64)
            .ranks(missing),
        RendezvousError::PeerLost { rank, during } => writer.tag(2).u32(*rank).text(during),
        RendezvousError::LabelMismatch {
            rank,
            label,
            other_rank,
            other_label,
        } => writer
            .tag(3)
            .u32(*rank)
            .text(label)
            .u32(*other_rank)
            .text(other_label),
        RendezvousError::Protocol { rank, detail } => writer.tag(4).u32(*rank).text(detail),
        RendezvousError::PeerFailed { rank, reason } => writer.tag(5).u32(*rank).text(reason),
        other => writer.tag(5).u32(rank).text(&other.to_string()),
    };
    writer.0
}

pub(super) fn decode_failure(bytes: &[u8]) -> Result<RendezvousError, Malformed> {
    let mut reader = Reader(bytes);
    let error = match reader.u16()? {
        1 => RendezvousError::Timeout {
            rank: reader.u32()?,
            during: reader.text()?,
            waited: Duration::from_nanos(reader.u64()?),
            // The receiver says where itself is.
            at: Box::default(),
            missing: reader.ranks()?,
        },
        2 => RendezvousError::PeerLost {
            rank: reader.u32()?,
            during: reader.text()?,
        },
        3 => RendezvousError::LabelMismatch {
            rank: reader.u32()?,
            label: reader.text()?,
            other_rank: reader.u32()?,
            other_label: reader.text()?,
        },
        4 => RendezvousError::Protocol {
            rank: reader.u32()?,
            detail: reader.text()?,
        },
        5 => RendezvousError::PeerFailed {
            rank: reader.u32()?,
            reason: reader.text()?,
        },
        tag => return Err(Malformed(format!("unknown failure {tag}"))),
    };
    reader.end()?;
    Ok(error)
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn tag(&mut self, value: u16) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.u32(text.len() as u32);
        self.0.extend(text.as_bytes());
        self
    }

    fn ranks(&mut self, ranks: &[u32]) -> &mut Self {
        self.u32(ranks.len() as u32);
        ranks.iter().fold(self, |writer, &rank| writer.u32(rank))
    }

    fn peer(&mut self, peer: &Peer) -> &mut Self {
        self.u32(peer.rank).u32(peer.process.pid);
        self.0.extend(peer.process.nonce);
        self
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or_else(|| Malformed("a frame that ends too early".into()))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<String, Malformed> {
        let length = self.u32()? as usize;
        let bytes = self.bytes(length)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| Malformed("text that is not UTF-8".into()))
    }

    fn ranks(&mut self) -> Result<Vec<u32>, Malformed> {
        let count = self.u32()?;
        if count > super::MAX_WORLD_SIZE {
            return Err(Malformed(format!("a list of {count} ranks")));
        }
        (0..count).map(|_| self.u32()).collect()
    }

    fn peer(&mut self) -> Result<Peer, Malformed> {
        Ok(Peer {
            rank: self.u32()?,
            process: ProcessId {
                pid: self.u32()?,
                nonce: self.array()?,
            },
        })
    }

    fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Malformed(format!(
                "{} bytes too many in a frame",
                self.0.len()
            )))
        }
    }
}

#[cfg(test)]
mod tests;
