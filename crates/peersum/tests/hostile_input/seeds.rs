//! The seeds in `fuzz/corpus`, and how they are made: `PEERSUM_RECORD_SEEDS=1 cargo test -p peersum
//! --test hostile_input record` writes them anew.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use peersum::Rendezvous;
use peersum_artifact::pack::pack_directory;
use peersum_artifact::{Digest, MANIFEST_FILE, Manifest};

use crate::targets::{LABEL, Session};

const PATIENCE: Duration = Duration::from_secs(60);

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn corpus(target: &str) -> PathBuf {
    repository().join("fuzz/corpus").join(target)
}

/// Whether a seed of this name is one that its target accepts.
pub(crate) fn is_whole(file: &str) -> bool {
    !file.starts_with("refused")
}

/// The seeds of a target, by name.
pub(crate) fn committed(target: &str) -> Vec<(String, Vec<u8>)> {
    let mut seeds: Vec<(String, Vec<u8>)> = std::fs::read_dir(corpus(target))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        // libFuzzer keeps what it finds under digests, beside the seeds.
        .filter(|path| path.extension().is_some())
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(&path).unwrap())
        })
        .collect();
    seeds.sort();
    assert!(seeds.len() > 1, "{target} has no seeds");
    seeds
}

#[test]
fn record_the_seeds_if_asked_to() {
    if std::env::var_os("PEERSUM_RECORD_SEEDS").is_none() {
        return;
    }
    record_cubins();
    record_manifests();
    record_pack();
    record_dispatch_tables();
    record_rendezvous();
}

fn write(target: &str, name: &str, bytes: &[u8]) {
    std::fs::create_dir_all(corpus(target)).unwrap();
    std::fs::write(corpus(target).join(name), bytes).unwrap();
}

fn read(name: &str) -> Vec<u8> {
    let data = repository().join("crates/peersum-artifact/tests/data");
    std::fs::read(data.join(name)).unwrap()
}

fn record_cubins() {
    for name in [
        "push.sm_80.cubin",
        "push.cuda12.sm_90.cubin",
        "pull.sm_90.cubin",
    ] {
        write("cubin", name, &read(name));
    }
    write(
        "cubin",
        "refused.relocatable.cubin",
        &read("relocatable.sm_90.cubin"),
    );
}

fn record_manifests() {
    let text = read("manifest.json");
    write("manifest", "two_modules.json", &text);
    let mut manifest = Manifest::parse(std::str::from_utf8(&text).unwrap()).unwrap();
    manifest.modules.clear();
    write(
        "manifest",
        "no_module.json",
        manifest.to_json_string().as_bytes(),
    );
    write(
        "manifest",
        "refused.field_twice.json",
        br#"{"schema":2,"schema":2}"#,
    );
}

/// Of PTX and of a cubin: a pack that is whole.
fn record_pack() {
    let directory = tempfile::tempdir().unwrap();
    let text = read("manifest.json");
    let mut manifest = Manifest::parse(std::str::from_utf8(&text).unwrap()).unwrap();
    for module in &mut manifest.modules {
        let bytes = read(
            &module
                .target
                .file_name(&module.key)
                .replace("peersum_push_bf16_ws8", "push"),
        );
        (module.bytes, module.sha256) = (bytes.len() as u64, Digest::of(&bytes));
        std::fs::write(directory.path().join(module.file_name()), bytes).unwrap();
    }
    std::fs::write(
        directory.path().join(MANIFEST_FILE),
        manifest.to_json_string(),
    )
    .unwrap();
    let pack = pack_directory(directory.path()).unwrap();
    write("pack", "two_modules.pack", &pack);
    write("pack", "refused.cut_off.pack", &pack[..pack.len() - 100]);
}

fn record_dispatch_tables() {
    let row = concat!(
        r#"[{"max_bytes":4096,"route":"push_one_shot","blocks":1,"threads":32},"#,
        r#"{"route":"pull_two_shot","blocks":256,"threads":512,"#,
        r#""origin":{"measured":{"device":"GPU","devices":8,"world_size":8,"dtypes":["bf16"],"#,
        r#""bytes":8192,"us":4.5,"peersum":"0.1.0","toolkit":"nvcc 13.0.88"}}}]"#
    );
    let symmetric =
        |route| format!(r#"[{{"max_bytes":null,"route":"{route}","blocks":2,"threads":32}}]"#);
    let small = format!(
        r#"{{"schema":1,"tables":[{{"arch":"sm_90","world_sizes":[8],"link":"peer",{}{row},
        "symmetric":{},"symmetric_in_place":{}}}]}}"#,
        r#""origin":"default","ordinary":"#,
        symmetric("symmetric_one_shot"),
        symmetric("symmetric_two_shot")
    );
    write("dispatch_table", "peer.json", small.as_bytes());
    let shared = small.replace(
        r#""arch":"sm_90","world_sizes":[8],"link":"peer""#,
        r#""arch":null,"world_sizes":[2,3],"link":"shared""#,
    );
    write("dispatch_table", "shared.json", shared.as_bytes());
    write(
        "dispatch_table",
        "refused.schema.json",
        br#"{"schema":2,"tables":[]}"#,
    );
}

fn record_rendezvous() {
    for (name, label, gives_up) in [
        ("exchange", LABEL, false),
        ("refused.label", "another", false),
        ("refused.failure", LABEL, true),
    ] {
        for (listener, messages) in (0..).zip(record_session(label, gives_up)) {
            write(
                "rendezvous",
                &format!("{name}.rank{listener}"),
                &rendezvous_seed(listener, 0, &messages),
            );
            if name == "exchange" {
                write(
                    "rendezvous",
                    &format!("descriptor.rank{listener}"),
                    &rendezvous_seed(listener, 1, &messages),
                );
            }
        }
    }
}

/// What a rank hears, with `descriptors` beside its last message.
fn rendezvous_seed(listener: u8, descriptors: u8, messages: &[Vec<u8>]) -> Vec<u8> {
    let last = messages.len() - 1;
    let messages = messages.iter().enumerate().map(|(index, bytes)| {
        let descriptors = if index == last { descriptors } else { 0 };
        (&bytes[..], descriptors)
    });
    let session = Session {
        listener,
        before_join: u8::try_from(last).unwrap(),
        messages: messages.collect(),
    };
    session.write()
}

/// The messages that rank 0 hears, and those that rank 1 hears, when two real ranks meet and
/// exchange or, if one `gives_up`, fail.
fn record_session(label: &str, gives_up: bool) -> [Vec<Vec<u8>>; 2] {
    let [to_hub, to_spoke] = [0, 1].map(|real| {
        let mut ranks = Rendezvous::threads(2);
        let socket = ranks.remove(1 - real).into_socket().unwrap();
        let socket = UnixStream::from(socket);
        socket.set_nonblocking(false).unwrap();
        (ranks.remove(0), socket)
    });
    let (hub, hub_socket) = to_hub;
    let (spoke, spoke_socket) = to_spoke;
    std::thread::scope(|scope| {
        for rendezvous in [hub, spoke] {
            scope.spawn(move || {
                let mut group = rendezvous.join(PATIENCE).unwrap();
                if gives_up {
                    group.abandon("out of memory");
                    return;
                }
                group.barrier(label, PATIENCE).unwrap();
            });
        }
        // The sockets keep the borders of messages: one read is one message.
        let copy = |from: &UnixStream, to: &UnixStream| {
            let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            scope.spawn(move || {
                let mut heard = Vec::new();
                let mut buffer = vec![0; 1 << 16];
                while let Ok(count @ 1..) = from.read(&mut buffer) {
                    heard.push(buffer[..count].to_vec());
                    let _ = to.write_all(&buffer[..count]);
                }
                let _ = to.shutdown(std::net::Shutdown::Write);
                heard
            })
        };
        let from_spoke = copy(&spoke_socket, &hub_socket);
        let from_hub = copy(&hub_socket, &spoke_socket);
        [from_spoke.join().unwrap(), from_hub.join().unwrap()]
    })
}
