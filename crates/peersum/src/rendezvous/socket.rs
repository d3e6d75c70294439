//! The sockets between the ranks: they keep the borders of messages, close at exec, never block.

use super::error::RendezvousError;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// A socket that is not connected yet.
pub(super) fn new() -> Result<OwnedFd, RendezvousError> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)
        .map_err(|error| RendezvousError::io("create a socket", error))
}

/// Two sockets that are connected to each other.
pub(super) fn pair() -> Result<(OwnedFd, OwnedFd), RendezvousError> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)
        .map_err(|error| RendezvousError::io("create a pair of sockets", error))
}

/// The next connection of a listening socket.
pub(super) fn accept(listener: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    rustix::net::accept_with(listener, FLAGS)
}

pub(super) fn duplicate(descriptor: BorrowedFd<'_>) -> Result<OwnedFd, RendezvousError> {
    descriptor
        .try_clone_to_owned()
        .map_err(|error| RendezvousError::io("duplicate a file descriptor", error))
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
