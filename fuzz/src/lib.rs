//! One function for each thing that peersum reads from a file or a socket. It takes any bytes, must
//! not panic, and asserts what must be true of the input that it accepts. libFuzzer calls these
//! functions, and so does `cargo test`, which includes this file.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};
use std::sync::OnceLock;
use std::time::Duration;

use peersum::Rendezvous;
use peersum::dispatch::{DispatchTables, Placement, Topology};
use peersum_artifact::pack::Pack;
use peersum_artifact::{Arch, Manifest, inspect_cubin, text_sections, verify_bytes};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

/// A manifest's text. Returns whether it was accepted, as all functions here do.
pub fn manifest(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else {
        return false;
    };
    let manifest = match Manifest::parse(text) {
        Ok(manifest) => manifest,
        Err(error) => {
            let _ = error.to_string();
            return false;
        }
    };
    let is_plain = |path: &str| {
        let mut parts = Path::new(path).components();
        parts.all(|part| matches!(part, Component::Normal(_)))
    };
    for source in &manifest.sources {
        assert!(is_plain(&source.path), "{:?}", source.path);
    }
    for module in &manifest.modules {
        let file = module.file_name();
        assert!(is_plain(&file) && !file.contains('/'), "{file:?}");
        assert_eq!(manifest.find(module.key, module.target), Some(module));
    }
    let written = manifest.to_json_string();
    let read = Manifest::parse(&written).map(|manifest| manifest.to_json_string());
    assert_eq!(read.ok(), Some(written), "what is written is read back");
    true
}

/// A cubin.
pub fn cubin(input: &[u8]) -> bool {
    let (info, texts) = (inspect_cubin(input), text_sections(input));
    if let (Ok(info), texts) = (&info, &texts) {
        let texts = texts.as_ref().map(Vec::as_slice);
        let texts = texts.unwrap_or_else(|error| panic!("two readers disagree: {error}"));
        for kernel in &info.entry_points {
            let section = format!(".text.{kernel}");
            assert!(texts.iter().any(|(name, _)| *name == section), "{kernel}");
        }
    }
    for error in [info.as_ref().err(), texts.as_ref().err()] {
        let _ = error.map(ToString::to_string);
    }
    info.is_ok()
}

/// A pack. True if at least one of its modules is what the pack's manifest says.
pub fn pack(input: &[u8]) -> bool {
    let pack = match Pack::parse(input) {
        Ok(Some(pack)) => pack,
        Ok(None) => {
            assert!(input.is_empty());
            return false;
        }
        Err(error) => {
            let _ = error.to_string();
            return false;
        }
    };
    let verified = pack.manifest().modules.iter().filter(|module| {
        let Ok(bytes) = pack.verified(module) else {
            return false;
        };
        assert!(verify_bytes(&bytes, module).is_ok());
        true
    });
    verified.count() > 0
}

/// The text of a file of dispatch tables.
pub fn dispatch_table(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else {
        return false;
    };
    let tables = match DispatchTables::parse(text) {
        Ok(tables) => tables,
        Err(error) => {
            let _ = error.to_string();
            return false;
        }
    };
    let mut accepted = false;
    for (arch, world_size, topology) in [
        (None, 2, Topology::Shared),
        (Some(Arch::new(9, 0)), 8, Topology::Peer),
        (None, 3, Topology::Emulator),
    ] {
        let table = match tables.choose(arch, world_size, topology) {
            Ok(table) => table,
            Err(error) => {
                let _ = error.to_string();
                continue;
            }
        };
        accepted = true;
        let _ = table.digest();
        for placement in Placement::ALL {
            for bytes in [0, 1, 4096, 1 << 20, u64::MAX] {
                let plan = table.plan(placement, bytes);
                assert!(plan.route.serves(placement), "{plan:?}");
                let mut rows = table.rows(placement).iter();
                assert!(rows.any(|row| row.plan() == plan), "{plan:?}");
                assert!(plan.blocks >= 1 && plan.threads >= 1, "{plan:?}");
            }
        }
    }
    accepted
}

/// The label of the exchange that [`rendezvous`] enters.
pub const LABEL: &str = "exchange";

/// What one rank of two sends to the other, as [`rendezvous`] reads it from its input: one byte for
/// the rank that hears it (bit 0), one for the number of messages that are there before the group
/// is formed, then the messages. Each is its length (two bytes, little endian), the number of its
/// file descriptors (one byte), and its bytes.
pub struct Session<'a> {
    /// The rank that hears the messages, 0 or 1.
    pub listener: u8,
    /// The number of messages that are sent before the listener joins; the rest is sent then.
    pub before_join: u8,
    /// Each message's bytes, and how many file descriptors come with it.
    pub messages: Vec<(&'a [u8], u8)>,
}

impl<'a> Session<'a> {
    /// `None` for an input that is too short. What is cut off at its end is a shorter message.
    pub fn read(input: &'a [u8]) -> Option<Self> {
        let (&[listener, before_join], mut rest) = input.split_first_chunk()?;
        let mut messages = Vec::new();
        while let Some((&[low, high, descriptors], behind)) = rest.split_first_chunk() {
            let length = usize::from(u16::from_le_bytes([low, high]));
            let (message, behind) = behind.split_at(length.min(behind.len()));
            messages.push((message, descriptors));
            rest = behind;
        }
        Some(Self {
            listener: listener & 1,
            before_join,
            messages,
        })
    }

    /// The input that [`Self::read`] reads this session from.
    pub fn write(&self) -> Vec<u8> {
        let mut input = vec![self.listener, self.before_join];
        for (message, descriptors) in &self.messages {
            let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
            input.extend(length.to_le_bytes());
            input.push(*descriptors);
            input.extend(&message[..usize::from(length)]);
        }
        input
    }
}

/// Everything that one rank of two sends to the other: greeting, exchange, and whatever else. True
/// if an exchange came about.
pub fn rendezvous(input: &[u8]) -> bool {
    let Some(session) = Session::read(input) else {
        return false;
    };
    let mut ranks = Rendezvous::threads(2);
    let speaker = ranks.remove(usize::from(session.listener == 0));
    let (Some(listener), Some(socket)) = (ranks.pop(), speaker.into_socket()) else {
        panic!("two ranks and a socket between them");
    };
    let before_join = usize::from(session.before_join).min(session.messages.len());
    let (before_join, then) = session.messages.split_at(before_join);
    send(&socket, before_join);
    let mut group = match listener.join(Duration::ZERO) {
        Ok(group) => group,
        Err(error) => {
            let _ = error.to_string();
            return false;
        }
    };
    send(&socket, then);
    let gathered = group.all_gather_fd(LABEL, b"own", None, Duration::ZERO);
    if let Ok(messages) = &gathered {
        assert_eq!(messages.len(), 2);
        assert_eq!(messages[group.rank() as usize].0, b"own");
    }
    // Anything else that was sent reaches a group that expects nothing or has failed; then the
    // connection closes.
    let _ = group.barrier("behind", Duration::ZERO);
    drop(socket);
    let _ = group.barrier("lost", Duration::ZERO);
    gathered.is_ok()
}

/// Sends what the socket takes at once, with some file descriptors.
fn send(socket: &OwnedFd, messages: &[(&[u8], u8)]) {
    static DESCRIPTOR: OnceLock<std::fs::File> = OnceLock::new();
    const MOST: usize = 24;
    let file = DESCRIPTOR.get_or_init(|| match std::fs::File::open("/dev/null") {
        Ok(file) => file,
        Err(error) => panic!("/dev/null: {error}"),
    });
    for (bytes, descriptors) in messages {
        let descriptors: Vec<BorrowedFd<'_>> =
            vec![file.as_fd(); usize::from(*descriptors) % (MOST + 1)];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let buffers = [std::io::IoSlice::new(bytes)];
        let _ = rustix::net::sendmsg(socket, &buffers, &mut control, flags);
    }
}
