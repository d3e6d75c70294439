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
use peersum_artifact::{Manifest, inspect_cubin, text_sections, verify_bytes};
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
        (Some("sm_90"), 8, Topology::Peer),
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
                assert!(rows.any(|row| row.plan == plan), "{plan:?}");
                assert!(plan.blocks >= 1 && plan.threads >= 1, "{plan:?}");
            }
        }
    }
    accepted
}

/// The label of the exchange that [`rendezvous`] enters.
pub const LABEL: &str = "exchange";

/// Input bytes of [`rendezvous`] in front of the stream: the rank that receives it (bit 0), how
/// many bytes of the stream are sent before the group forms (two bytes, little endian; the rest
/// follows), and how many file descriptors come with each part.
pub const CONTROL_BYTES: usize = 5;

/// Everything that one rank of two sends to the other: the greeting, the exchange, and anything
/// else. Returns whether an exchange succeeded.
pub fn rendezvous(input: &[u8]) -> bool {
    let Some((&[listener, at_low, at_high, first, second], stream)) =
        input.split_first_chunk::<CONTROL_BYTES>()
    else {
        return false;
    };
    let mut ranks = Rendezvous::threads(2);
    let speaker = ranks.remove(usize::from(listener & 1 == 0));
    let (Some(listener), Some(socket)) = (ranks.pop(), speaker.into_socket()) else {
        panic!("two ranks and a socket between them");
    };
    let at = usize::from(u16::from_le_bytes([at_low, at_high])).min(stream.len());
    let (head, tail) = stream.split_at(at);
    send(&socket, head, first);
    let mut group = match listener.join(Duration::ZERO) {
        Ok(group) => group,
        Err(error) => {
            let _ = error.to_string();
            return false;
        }
    };
    send(&socket, tail, second);
    let gathered = group.all_gather_fds(LABEL, b"own", &[], Duration::ZERO);
    if let Ok(parts) = &gathered {
        assert_eq!(parts.len(), 2);
        assert_eq!(parts[group.rank() as usize].0, b"own");
    }
    // Anything else that was sent reaches a group that expects nothing or has failed; then the
    // connection closes.
    let _ = group.barrier("behind", Duration::ZERO);
    drop(socket);
    let _ = group.barrier("lost", Duration::ZERO);
    gathered.is_ok()
}

/// Sends what the socket accepts at once, with some file descriptors.
fn send(socket: &OwnedFd, bytes: &[u8], descriptors: u8) {
    static DESCRIPTOR: OnceLock<std::fs::File> = OnceLock::new();
    const MOST: usize = 24;
    if bytes.is_empty() {
        return;
    }
    let file = DESCRIPTOR.get_or_init(|| match std::fs::File::open("/dev/null") {
        Ok(file) => file,
        Err(error) => panic!("/dev/null: {error}"),
    });
    let descriptors: Vec<BorrowedFd<'_>> =
        vec![file.as_fd(); usize::from(descriptors) % (MOST + 1)];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let buffers = [std::io::IoSlice::new(bytes)];
    let _ = rustix::net::sendmsg(socket, &buffers, &mut control, flags);
}
