//! One connection to another rank: messages in, messages out, descriptors with them.

use super::step::{Wakeup, Watch};
use super::wire::{ConnectionError, Frame, MAX_DATAGRAM_BYTES, Message, Packet};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown,
};
use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Messages read ahead of their use. Rank 0 needs one: a rank that has its results may begin the
/// next exchange at once.
const READ_AHEAD: usize = 4;
/// How long to wait before sending again when too many descriptors are in flight.
const IN_FLIGHT_PAUSE: Duration = Duration::from_millis(2);

const ANCILLARY_BYTES: usize = rustix::cmsg_space!(ScmRights(1));

#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    inbox: VecDeque<Frame>,
    outgoing: VecDeque<Arc<Packet>>,
    /// No sending before this moment.
    paused_until: Option<Instant>,
    /// The other end reads no more.
    deaf: bool,
    /// The system has said that the other end closed without reading everything.
    reset: bool,
    /// The other end sends no more and everything it sent has been read.
    ended: bool,
}

impl Connection {
    /// `socket` must be non-blocking.
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            inbox: VecDeque::new(),
            outgoing: VecDeque::new(),
            paused_until: None,
            deaf: false,
            reset: false,
            ended: false,
        }
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
        while !self.deaf
            && let Some(packet) = self.outgoing.front()
        {
            match send_packet(self.socket.as_fd(), packet) {
                Ok(()) => drop(self.outgoing.pop_front()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                // The other end may have sent why it closed: `receive` finds that.
                Err(Errno::PIPE | Errno::CONNRESET | Errno::CONNREFUSED | Errno::NOTCONN) => {
                    self.deaf = true;
                }
                // The user's limit of descriptors in flight: it falls as the receivers read.
                Err(Errno::TOOMANYREFS) => {
                    self.paused_until = Some(Instant::now() + IN_FLIGHT_PAUSE);
                    return Ok(());
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<(), ConnectionError> {
        while self.can_receive() {
            match receive_frame(self.socket.as_fd()) {
                Ok(Some(frame)) => self.inbox.push_back(frame),
                // Reported once, and before what the other end sent.
                Err(ConnectionError::Errno(Errno::CONNRESET)) if !self.reset => self.reset = true,
                Ok(None) | Err(ConnectionError::Errno(Errno::CONNRESET | Errno::NOTCONN)) => {
                    self.ended = true;
                }
                Err(ConnectionError::Errno(Errno::INTR)) => {}
                Err(ConnectionError::Errno(Errno::AGAIN)) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn can_receive(&self) -> bool {
        !self.ended && self.inbox.len() < READ_AHEAD
    }

    fn can_send(&self) -> bool {
        self.has_unsent() && !self.deaf
    }

    /// Sends `last`, and what is queued before it, as far as the other end takes it before the
    /// deadline. Errors are ignored: the connection ends.
    pub(super) fn say_last(&mut self, last: &Message, deadline: Instant) {
        self.queue(Packet::new(last));
        while self.send().is_ok() && self.can_send() && Instant::now() < deadline {
            let mut wakeup = Wakeup::at_latest(deadline);
            self.watch_for_sending(&mut wakeup);
            if wakeup.sleep().is_err() {
                return;
            }
        }
    }

    fn watch_for_sending<'a>(&'a self, wakeup: &mut Wakeup<'a>) {
        wakeup.at(self.paused_until);
        if self.can_send() && self.paused_until.is_none() {
            wakeup.on(PollFd::new(&self.socket, PollFlags::OUT));
        }
    }

    /// Ends the connection for both ends, also if a child that fork made keeps this one open.
    pub(super) fn shut_down(&self) {
        // The other end may be gone already.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }
}

impl Watch for Connection {
    fn watch<'a>(&'a self, wakeup: &mut Wakeup<'a>) {
        self.watch_for_sending(wakeup);
        // Not watched otherwise: poll would report a hang-up again and again.
        if self.can_receive() {
            wakeup.on(PollFd::new(&self.socket, PollFlags::IN));
        }
    }
}

fn send_packet(socket: BorrowedFd<'_>, packet: &Packet) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); ANCILLARY_BYTES];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptor = packet.descriptor.as_ref().map(AsFd::as_fd);
    if descriptor.is_some() && !control.push(SendAncillaryMessage::ScmRights(descriptor.as_slice()))
    {
        return Err(Errno::NOBUFS);
    }
    // A peer that is gone must be an error, not a SIGPIPE.
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(socket, &[IoSlice::new(&packet.bytes)], &mut control, flags).map(drop)
}

/// The next datagram; None if the other end sends no more.
fn receive_frame(socket: BorrowedFd<'_>) -> Result<Option<Frame>, ConnectionError> {
    let mut bytes = vec![0; MAX_DATAGRAM_BYTES];
    let mut space = [MaybeUninit::uninit(); ANCILLARY_BYTES];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let buffers = &mut [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = rustix::net::recvmsg(socket, buffers, &mut control, flags)?;
    // Taken at once: from here on they are closed whatever happens.
    let mut descriptors: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    let malformed = |what: String| Err(ConnectionError::Malformed(what));
    if received.flags.contains(ReturnFlags::TRUNC) {
        return malformed(format!("a message of more than {MAX_DATAGRAM_BYTES} bytes"));
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return malformed(
            "file descriptors were lost: more than one was sent, or this process has no more to \
             spare (ulimit -n)"
                .into(),
        );
    }
    if descriptors.len() > 1 {
        return malformed("more file descriptors than a message may carry".into());
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    Frame::decode(&bytes[..received.bytes], descriptors.pop()).map(Some)
}
