//! Processes that connect to rank 0 and break the protocol, before they have a rank and after.

#![allow(clippy::unwrap_used)]

mod rendezvous_stage;

use rendezvous_stage::by_hand::{self, contribution, frame, frame_with_length, join_request};
use rendezvous_stage::{AMPLE, Stage, settle};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

#[test]
fn silent_and_senseless_connections_keep_nobody_waiting() {
    let stage = Stage::enter("silent_and_senseless_connections_keep_nobody_waiting");
    let seed = fastrand::u64(..);
    println!("seed {seed:#x}");
    let mut random = fastrand::Rng::with_seed(seed);
    let zero = stage.rank(0, 2, AMPLE, "join, gather work 1");
    stage.await_socket();
    let started = Instant::now();
    // Held open until the group is done. More than rank 0 bears at a time.
    let mut noise = Vec::new();
    for number in 0..300 {
        let mut stream = stage.connect();
        let bytes: Vec<u8> = match number % 4 {
            0 => Vec::new(),
            1 => {
                let length = random.usize(1..2000);
                std::iter::repeat_with(|| random.u8(..))
                    .take(length)
                    .collect()
            }
            // A header that announces 4 GiB, and a message that stops in the middle.
            2 => frame_with_length(u32::MAX, "", &[]),
            _ => frame_with_length(100, r#"{"Join":"#, &[]),
        };
        // Rank 0 may have closed it already.
        let _ = stream.write_all(&bytes);
        noise.push(stream);
    }
    let one = stage.rank(1, 2, AMPLE, "join, gather work 1");
    one.succeed();
    zero.succeed();
    assert!(started.elapsed() < AMPLE, "the group waited for the noise");
}

#[test]
fn a_member_that_breaks_the_protocol_is_named_to_all() {
    let stage = Stage::enter("a_member_that_breaks_the_protocol_is_named_to_all");
    let misdeeds: [(&str, Vec<u8>); 8] = [
        ("ends too early", frame_with_length(u32::MAX, "", &[])),
        ("more than 49152 bytes", vec![0x55; 50_000]),
        (
            "a payload of 16385 bytes",
            contribution(2, "work", &[0; (16 << 10) + 1]),
        ),
        ("not a rendezvous message", vec![0x55; 200]),
        (
            "a Welcome message",
            frame(r#"{"Welcome":{"peers":[]}}"#, &[]),
        ),
        ("cannot be read", frame(r#"{"Unknown":{}}"#, &[])),
        ("a Contribution message", contribution(1, "work", b"forged")),
        (
            "protocol version 9",
            by_hand::frame_of_version(9, 0, "", &[]),
        ),
    ];
    for (complaint, bytes) in misdeeds {
        let ranks = [0, 1].map(|rank| stage.rank(rank, 3, AMPLE, "join, gather work 1"));
        let mut member = stage.connect();
        member.write_all(&join_request(2)).unwrap();
        while !by_hand::read(&mut member).starts_with(r#"{"Welcome""#) {}
        member.write_all(&bytes).unwrap();
        for rank in ranks {
            let error = rank.error();
            assert!(
                error.starts_with("Protocol { rank: 2") && error.contains(complaint),
                "{complaint}: {error}"
            );
        }
    }
}

#[test]
fn a_rank_that_ends_right_behind_its_message_is_lost_to_all() {
    let stage = Stage::enter("a_rank_that_ends_right_behind_its_message_is_lost_to_all");
    let mut zero = stage.rank(0, 3, AMPLE, "join, pause, gather work 1");
    let mut one = stage.rank(1, 3, AMPLE, "join, gather work 1");
    let mut member = stage.connect();
    member.write_all(&join_request(2)).unwrap();
    while !by_hand::read(&mut member).starts_with(r#"{"Welcome""#) {}
    member.write_all(&contribution(2, "work", b"")).unwrap();
    drop(member);
    zero.hear("paused");
    one.hear("join");
    // Rank 0 finds both messages and the end of the connection at once.
    settle();
    zero.go();
    for rank in [zero, one] {
        let error = rank.error();
        assert!(error.starts_with("PeerLost { rank: 2"), "{error}");
    }
}

/// Sends `bytes` with `count` descriptors attached.
fn send_with_descriptors(stream: &UnixStream, bytes: &[u8], count: usize) {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    let descriptors = vec![stream.as_fd(); count];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(200))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let sent = rustix::net::sendmsg(
        stream,
        &[std::io::IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    );
    assert_eq!(sent, Ok(bytes.len()));
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let stage = Stage::enter("descriptors_that_nobody_asked_for_are_closed");
    let count = |noise: bool| {
        let zero = stage.rank(0, 2, AMPLE, "join, descriptors, barrier work");
        stage.await_socket();
        for number in 0..if noise { 60 } else { 0_usize } {
            let stream = stage.connect();
            // As many as a contribution may carry, and more.
            let descriptors = [1, 2, 200][number % 3];
            send_with_descriptors(&stream, &join_request(1), descriptors);
            // Until rank 0 has closed it.
            let _ = (&stream).read(&mut [0]);
        }
        let one = stage.rank(1, 2, AMPLE, "join, barrier work");
        one.succeed();
        let heard = zero.succeed();
        heard
            .iter()
            .find_map(|line| line.strip_prefix("descriptors "))
            .unwrap()
            .to_owned()
    };
    let quiet = count(false);
    assert_eq!(count(true), quiet);
}
