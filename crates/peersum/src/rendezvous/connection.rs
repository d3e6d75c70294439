//! One non-blocking socket to another rank: frames in, frames out, descriptors with them.

use super::error::RendezvousError;
use super::wire::{HEADER_BYTES, Header, Kind, Limits, Malformed};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown,
};
use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Frames read ahead of their use. Rank 0 needs one: a rank that has its results may begin the next exchange at once.
const READ_AHEAD_FRAMES: usize = 4;
/// A body is believed this much at a time, so that an announced length alone allocates little.
const BODY_STEP_BYTES: usize = 64 << 10;
/// How long to wait before sending again when too many descriptors are in flight.
const IN_FLIGHT_PAUSE: Duration = Duration::from_millis(2);

const ANCILLARY_BYTES: usize = rustix::cmsg_space!(ScmRights(super::MAX_DESCRIPTORS));

/// A frame as it was received.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) rank: u32,
    pub(super) label: String,
    pub(super) body: Vec<u8>,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// A frame to send, shared by the connections that it goes to.
#[derive(Debug)]
pub(super) struct Packet {
    bytes: Vec<u8>,
    descriptors: Vec<Arc<OwnedFd>>,
}

impl Packet {
    /// The caller has checked the lengths against [`Limits::MEMBER`].
    pub(super) fn new(kind: Kind, rank: u32, label: &str, body: &[u8]) -> Arc<Self> {
        Self::with_descriptors(kind, rank, label, body, Vec::new())
    }

    pub(super) fn with_descriptors(
        kind: Kind,
        rank: u32,
        label: &str,
        body: &[u8],
        descriptors: Vec<Arc<OwnedFd>>,
    ) -> Arc<Self> {
        let header = Header {
            kind,
            descriptors: descriptors.len(),
            rank,
            label_bytes: label.len(),
            body_bytes: body.len(),
        };
        let mut bytes = Vec::with_capacity(HEADER_BYTES + label.len() + body.len());
        bytes.extend(header.encode());
        bytes.extend(label.as_bytes());
        bytes.extend(body);
        Arc::new(Self { bytes, descriptors })
    }
}

/// Why a connection can no longer be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Errno(#[from] Errno),
}

impl ConnectionError {
    /// As it is reported when the other end is `rank`.
    pub(super) fn by_rank(self, rank: u32) -> RendezvousError {
        match self {
            Self::Malformed(Malformed(detail)) => RendezvousError::Protocol { rank, detail },
            Self::Errno(errno) => RendezvousError::io("exchange with another rank", errno),
        }
    }
}

/// The part of a frame that has arrived.
#[derive(Debug)]
enum Incoming {
    Header {
        bytes: [u8; HEADER_BYTES],
        filled: usize,
        descriptors: Vec<OwnedFd>,
    },
    Body {
        header: Header,
        bytes: Vec<u8>,
        descriptors: Vec<OwnedFd>,
    },
}

impl Incoming {
    const fn start() -> Self {
        Self::Header {
            bytes: [0; HEADER_BYTES],
            filled: 0,
            descriptors: Vec::new(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    limits: Limits,
    incoming: Incoming,
    inbox: VecDeque<Frame>,
    outgoing: VecDeque<Arc<Packet>>,
    /// Bytes of the first outgoing packet that are sent.
    sent: usize,
    /// No sending before this moment.
    paused_until: Option<Instant>,
    /// The other end reads no more.
    deaf: bool,
    /// The other end sends no more and everything it sent has been read.
    ended: bool,
}

impl Connection {
    /// `socket` must be non-blocking.
    pub(super) fn new(socket: OwnedFd, limits: Limits) -> Self {
        Self {
            socket,
            limits,
            incoming: Incoming::start(),
            inbox: VecDeque::new(),
            outgoing: VecDeque::new(),
            sent: 0,
            paused_until: None,
            deaf: false,
            ended: false,
        }
    }

    pub(super) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    pub(super) fn next_frame(&mut self) -> Option<Frame> {
        self.inbox.pop_front()
    }

    /// The other end is gone and all that it sent has been taken.
    pub(super) fn is_lost(&self) -> bool {
        self.ended && self.inbox.is_empty()
    }

    pub(super) fn has_unsent(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Queues a packet; [`Self::pump`] sends it.
    pub(super) fn queue(&mut self, packet: Arc<Packet>) {
        self.outgoing.push_back(packet);
    }

    /// Receives and sends what is possible now, without waiting.
    pub(super) fn pump(&mut self) -> Result<(), ConnectionError> {
        self.send()?;
        self.receive()
    }

    fn send(&mut self) -> Result<(), Errno> {
        if self
            .paused_until
            .is_some_and(|moment| Instant::now() < moment)
        {
            return Ok(());
        }
        self.paused_until = None;
        // Why an end that went deaf left may still be in what it sent: that is for `receive` to find.
        while !self.deaf
            && let Some(packet) = self.outgoing.front()
        {
            match send_some(self.socket.as_fd(), packet, self.sent) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::PIPE | Errno::CONNRESET) => self.deaf = true,
                // The user's limit of descriptors in flight: the receivers lower the count as they read.
                Err(Errno::TOOMANYREFS) => {
                    self.paused_until = Some(Instant::now() + IN_FLIGHT_PAUSE);
                    return Ok(());
                }
                Err(errno) => return Err(errno),
            }
            if self.sent == packet.bytes.len() {
                self.outgoing.pop_front();
                self.sent = 0;
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<(), ConnectionError> {
        while !self.ended && self.inbox.len() < READ_AHEAD_FRAMES {
            match self.receive_some() {
                Ok(true) => {}
                Ok(false) | Err(ConnectionError::Errno(Errno::CONNRESET)) => self.ended = true,
                Err(ConnectionError::Errno(Errno::INTR)) => {}
                Err(ConnectionError::Errno(Errno::AGAIN)) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads at most to the end of the current header or body, so that descriptors, which come with the first byte of
    /// their frame, are never taken for those of another. False at the end of the stream.
    fn receive_some(&mut self) -> Result<bool, ConnectionError> {
        match &mut self.incoming {
            Incoming::Header {
                bytes,
                filled,
                descriptors,
            } => {
                let count = receive_bytes(self.socket.as_fd(), &mut bytes[*filled..], descriptors)?;
                *filled += count;
                if count == 0 {
                    return Ok(false);
                }
                if *filled == HEADER_BYTES {
                    let header = Header::decode(bytes, self.limits)?;
                    let descriptors = std::mem::take(descriptors);
                    if descriptors.len() != header.descriptors {
                        return Err(Malformed(format!(
                            "a frame of {} file descriptors with {} attached",
                            header.descriptors,
                            descriptors.len()
                        ))
                        .into());
                    }
                    self.incoming = Incoming::Body {
                        header,
                        bytes: Vec::new(),
                        descriptors,
                    };
                }
            }
            Incoming::Body {
                header,
                bytes,
                descriptors,
            } => {
                let total = header.label_bytes + header.body_bytes;
                let filled = bytes.len();
                if filled < total {
                    bytes.resize(total.min(filled + BODY_STEP_BYTES), 0);
                    let before = descriptors.len();
                    let result =
                        receive_bytes(self.socket.as_fd(), &mut bytes[filled..], descriptors);
                    let count = *result.as_ref().unwrap_or(&0);
                    bytes.truncate(filled + count);
                    result?;
                    if descriptors.len() != before {
                        return Err(
                            Malformed("file descriptors in the middle of a frame".into()).into(),
                        );
                    }
                    if count == 0 {
                        return Ok(false);
                    }
                }
            }
        }
        self.finish_frame()?;
        Ok(true)
    }

    fn finish_frame(&mut self) -> Result<(), Malformed> {
        if let Incoming::Body {
            header,
            bytes,
            descriptors,
        } = &mut self.incoming
            && bytes.len() == header.label_bytes + header.body_bytes
        {
            let mut label = std::mem::take(bytes);
            let body = label.split_off(header.label_bytes);
            let label = String::from_utf8(label)
                .map_err(|_| Malformed("a label that is not UTF-8".into()))?;
            let descriptors = std::mem::take(descriptors);
            self.inbox.push_back(Frame {
                kind: header.kind,
                rank: header.rank,
                label,
                body,
                descriptors,
            });
            self.incoming = Incoming::start();
        }
        Ok(())
    }

    /// What to wait for, if anything can still come of this connection.
    pub(super) fn interest(&self) -> Option<PollFd<'_>> {
        let mut events = PollFlags::empty();
        if !self.ended && self.inbox.len() < READ_AHEAD_FRAMES {
            events |= PollFlags::IN;
        }
        if self.has_unsent() && !self.deaf && self.paused_until.is_none() {
            events |= PollFlags::OUT;
        }
        // With no event asked for, poll would still report a hang-up, again and again.
        (!events.is_empty()).then(|| PollFd::from_borrowed_fd(self.socket.as_fd(), events))
    }

    /// Sends what is queued, as far as the other end takes it before the deadline. For last words: errors are of no use.
    pub(super) fn linger(&mut self, deadline: Instant) {
        while self.send().is_ok() && self.has_unsent() && !self.deaf {
            let mut fds = [PollFd::from_borrowed_fd(
                self.socket.as_fd(),
                PollFlags::OUT,
            )];
            if !wait(
                &mut fds,
                deadline.min(Instant::now() + Duration::from_millis(10)),
            )
            .unwrap_or(false)
                && Instant::now() >= deadline
            {
                break;
            }
        }
    }

    /// Ends the connection for both ends, also if a child that fork made keeps this one open.
    pub(super) fn shut_down(&self) {
        // The other end may be gone already.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }

    /// The next moment at which to pump although nothing has happened.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.paused_until
    }
}

fn send_some(socket: BorrowedFd<'_>, packet: &Packet, sent: usize) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); ANCILLARY_BYTES];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let borrowed: Vec<BorrowedFd<'_>> = packet
        .descriptors
        .iter()
        .map(|descriptor| descriptor.as_fd())
        .collect();
    if sent == 0
        && !borrowed.is_empty()
        && !control.push(SendAncillaryMessage::ScmRights(&borrowed))
    {
        return Err(Errno::NOBUFS);
    }
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(&packet.bytes[sent..])],
        &mut control,
        // A peer that is gone must be an error, not a SIGPIPE.
        SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    )
}

fn receive_bytes(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> Result<usize, ConnectionError> {
    let mut space = [MaybeUninit::uninit(); ANCILLARY_BYTES];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(buffer)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    // Taken at once: from here on they are closed whatever happens.
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(Malformed(
            "file descriptors were lost: more than allowed were sent, or this process has no more to spare \
             (ulimit -n)"
                .into(),
        )
        .into());
    }
    if descriptors.len() > super::MAX_DESCRIPTORS {
        return Err(Malformed("more file descriptors than a frame may carry".into()).into());
    }
    Ok(received.bytes)
}

/// The user that the process at the other end of a Unix socket had when it connected or listened.
///
/// rustix's `socket_peercred` cannot be used: it takes the pid to be positive, and the pid of a
/// process that has no number in this process's PID namespace is 0.
pub(super) fn peer_uid(socket: BorrowedFd<'_>) -> std::io::Result<u32> {
    let mut credentials = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `credentials` is a place for `length` bytes, of which any content is a `ucred`, and
    // `length` is a place for the number of those that were written.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(credentials.uid)
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Waits until one of `fds` is ready; false at the deadline.
pub(super) fn wait(fds: &mut [PollFd<'_>], deadline: Instant) -> Result<bool, Errno> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match rustix::event::poll(fds, Some(&timeout)) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno),
        }
    }
}
