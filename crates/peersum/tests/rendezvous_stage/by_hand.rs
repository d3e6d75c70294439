//! The wire format, written down a second time, for tests that play a rank message by message.

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// The protocol's version.
pub const VERSION: u32 = 2;

/// A message of this version. `json_bytes` is the length that it says its JSON has.
pub fn frame_with_length(json_bytes: u32, json: &str, payload: &[u8]) -> Vec<u8> {
    frame_of_version(VERSION, json_bytes, json, payload)
}

pub fn frame(json: &str, payload: &[u8]) -> Vec<u8> {
    frame_with_length(json.len() as u32, json, payload)
}

pub fn frame_of_version(version: u32, json_bytes: u32, json: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = b"peersum\0".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(json_bytes.to_le_bytes());
    bytes.extend(json.as_bytes());
    bytes.extend(payload);
    bytes
}

/// A contribution to the exchange `label`.
pub fn contribution(rank: u32, label: &str, payload: &[u8]) -> Vec<u8> {
    let json = format!(r#"{{"Contribution":{{"rank":{rank},"label":"{label}"}}}}"#);
    frame(&json, payload)
}

/// A request of this process to be `rank` of 3 in the group `run`.
pub fn join_request(rank: u32) -> Vec<u8> {
    let pid = std::process::id();
    let json = format!(
        r#"{{"Join":{{"group":{{"name":"run","run":"","world_size":3}},
        "peer":{{"rank":{rank},"process":{{"pid":{pid},"nonce":{:?}}}}}}}}}"#,
        [5; 16]
    );
    frame(&json, &[])
}

/// A connection to the socket at `path`: one `write` sends one message.
pub fn connect(path: &Path) -> std::io::Result<UnixStream> {
    let socket = socket()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

/// A socket that listens at `path`.
pub fn listen(path: &Path) -> std::io::Result<OwnedFd> {
    let socket = socket()?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 8)?;
    Ok(socket)
}

/// A socket of the kind that keeps the borders of messages.
fn socket() -> std::io::Result<OwnedFd> {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    Ok(socket)
}

/// The JSON of the next message; empty at the end of the connection.
pub fn read(stream: &mut UnixStream) -> String {
    let mut bytes = vec![0; 1 << 16];
    // If the other end leaves without reading all, an error comes before what it said.
    let length = stream.read(&mut bytes).or_else(|_| stream.read(&mut bytes));
    let message = bytes.get(16..length.unwrap_or(0)).unwrap_or_default();
    String::from_utf8_lossy(message).into_owned()
}
