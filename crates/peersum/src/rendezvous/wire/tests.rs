//! Frames as they travel, whole and damaged.

use super::*;

fn hello() -> Hello {
    Hello {
        world_size: 4,
        peer: Peer {
            rank: 3,
            process: ProcessId {
                pid: 77,
                nonce: [9; 16],
            },
        },
        group: "layers".into(),
        run: "job 12.0".into(),
    }
}

fn failures() -> Vec<RendezvousError> {
    vec![
        RendezvousError::Timeout {
            rank: 1,
            during: "join".into(),
            waited: Duration::from_millis(1500),
            at: Box::default(),
            missing: vec![2, 3],
        },
        RendezvousError::PeerLost {
            rank: 5,
            during: "handles".into(),
        },
        RendezvousError::LabelMismatch {
            rank: 2,
            label: "a".into(),
            other_rank: 0,
            other_label: "b".into(),
        },
        RendezvousError::Protocol {
            rank: 1,
            detail: "noise".into(),
        },
        RendezvousError::PeerFailed {
            rank: 7,
            reason: "out of memory".into(),
        },
    ]
}

fn refusals() -> Vec<Refusal> {
    vec![
        Refusal::Version { ours: 1, theirs: 2 },
        Refusal::User { ours: 1, theirs: 2 },
        Refusal::Group {
            ours: "a".into(),
            theirs: "b".into(),
        },
        Refusal::Run {
            ours: "a".into(),
            theirs: String::new(),
        },
        Refusal::WorldSize { ours: 2, theirs: 8 },
        Refusal::Rank { rank: 9 },
        Refusal::RankTaken { rank: 1, pid: 3 },
        Refusal::AlreadyFormed {
            group: "g".into(),
            rank: 1,
            pid: 3,
        },
    ]
}

#[test]
fn every_frame_comes_back_as_it_was_sent() {
    assert_eq!(Hello::decode(&hello().encode()), Ok(Ok(hello())));
    for refusal in refusals() {
        assert_eq!(decode_refusal(&encode_refusal(&refusal)), Ok(refusal));
    }
    for failure in failures() {
        let decoded = decode_failure(&encode_failure(&failure, 0)).unwrap();
        assert_eq!(format!("{decoded:?}"), format!("{failure:?}"));
    }
    assert_eq!(decode_ranks(&encode_ranks(&[1, 5])), Ok(vec![1, 5]));
    let roster: Vec<Peer> = (0..3)
        .map(|rank| Peer {
            rank,
            ..hello().peer
        })
        .collect();
    assert_eq!(decode_roster(&encode_roster(&roster), 3), Ok(roster));
}

#[test]
fn an_error_that_only_the_sender_can_have_had_travels_as_its_reason() {
    let error = RendezvousError::TooManyDescriptors {
        count: 99,
        limit: 16,
    };
    let decoded = decode_failure(&encode_failure(&error, 4)).unwrap();
    let RendezvousError::PeerFailed { rank: 4, reason } = decoded else {
        panic!("{decoded:?}")
    };
    assert_eq!(reason, error.to_string());
}

#[test]
fn a_length_above_the_limit_is_refused_by_the_header_alone() {
    let header = Header {
        kind: Kind::Contribution,
        descriptors: 0,
        rank: 1,
        label_bytes: 3,
        body_bytes: super::super::MAX_MESSAGE_BYTES,
    };
    assert_eq!(Header::decode(&header.encode(), Limits::MEMBER), Ok(header));
    for header in [
        Header {
            body_bytes: super::super::MAX_MESSAGE_BYTES + 1,
            ..header
        },
        Header {
            body_bytes: u32::MAX as usize,
            ..header
        },
        Header {
            label_bytes: super::super::MAX_LABEL_BYTES + 1,
            ..header
        },
        Header {
            descriptors: super::super::MAX_DESCRIPTORS + 1,
            ..header
        },
    ] {
        assert!(
            Header::decode(&header.encode(), Limits::MEMBER).is_err(),
            "{header:?}"
        );
    }
    assert!(Header::decode(&header.encode(), Limits::STRANGER).is_err());
}

#[test]
fn another_protocol_version_is_named_whatever_follows_it() {
    let mut bytes = 9_u32.to_le_bytes().to_vec();
    bytes.extend([0xAB; 40]);
    assert_eq!(
        Hello::decode(&bytes),
        Ok(Err(Refusal::Version {
            ours: VERSION,
            theirs: 9
        }))
    );
}

#[test]
fn damaged_frames_are_refused_without_panic_or_large_allocation() {
    let seed = fastrand::u64(..);
    println!("seed {seed:#x}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut samples = vec![
        hello().encode(),
        encode_roster(&[hello().peer; 4]),
        encode_ranks(&[1, 2, 3]),
    ];
    samples.extend(refusals().iter().map(encode_refusal));
    samples.extend(failures().iter().map(|failure| encode_failure(failure, 0)));
    for _ in 0..50_000 {
        let mut bytes = samples[random.usize(..samples.len())].clone();
        for _ in 0..random.usize(1..4) {
            match random.u8(..3) {
                0 => bytes.truncate(random.usize(..=bytes.len())),
                1 if !bytes.is_empty() => {
                    let index = random.usize(..bytes.len());
                    bytes[index] = random.u8(..);
                }
                _ => bytes.push(random.u8(..)),
            }
        }
        // What decodes must fit in what was given: a text or list is never longer than its bytes.
        if let Ok(Ok(hello)) = Hello::decode(&bytes) {
            assert!(hello.group.len() + hello.run.len() <= bytes.len());
        }
        let _ = decode_roster(&bytes, 4);
        if let Ok(ranks) = decode_ranks(&bytes) {
            assert!(ranks.len() * 4 <= bytes.len());
        }
        let _ = decode_refusal(&bytes);
        let _ = decode_failure(&bytes);
        let mut header = [0; HEADER_BYTES];
        random.fill(&mut header);
        header[..8].copy_from_slice(&MAGIC);
        if let Ok(header) = Header::decode(&header, Limits::MEMBER) {
            assert!(header.body_bytes <= super::super::MAX_MESSAGE_BYTES);
        }
    }
}

#[test]
fn every_truncation_of_every_frame_is_refused() {
    let whole = hello().encode();
    for length in 0..whole.len() {
        assert!(Hello::decode(&whole[..length]).is_err(), "{length} bytes");
    }
    for failure in failures() {
        let whole = encode_failure(&failure, 0);
        for length in 0..whole.len() {
            assert!(
                decode_failure(&whole[..length]).is_err(),
                "{length} bytes of {failure:?}"
            );
        }
    }
}
