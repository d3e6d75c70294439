//! Messages as they travel, whole and damaged.

use super::*;

fn request() -> Message {
    let process = crate::rendezvous::ProcessId::current().unwrap();
    Message::Join {
        group: GroupIdentity {
            name: "layers".into(),
            run: "job 12.0".into(),
            world_size: 4,
        },
        peer: Peer { rank: 3, process },
    }
}

fn failures() -> Vec<RendezvousError> {
    let (label, other_label) = ("a".into(), "b".into());
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
            label,
            other_rank: 0,
            other_label,
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

fn messages() -> Vec<Message> {
    let label = "memory".to_owned();
    let mut messages = vec![
        request(),
        Message::Welcome { peers: Vec::new() },
        Message::Pending {
            missing: vec![1, 5],
        },
        Message::Contribution { rank: 1, label },
        Message::Refused(Refusal::RankTaken { rank: 1, pid: 3 }),
    ];
    messages.extend(failures().iter().map(|error| Message::failure(error, 0)));
    messages
}

fn bytes(message: &Message) -> Vec<u8> {
    Packet::new(message).bytes.clone()
}

fn decode(bytes: &[u8]) -> Result<Message, ConnectionError> {
    Frame::decode(bytes, None).map(|frame| frame.message)
}

#[test]
fn every_message_comes_back_as_it_was_sent() {
    for message in messages() {
        assert_eq!(decode(&bytes(&message)), Ok(message));
    }
    for error in failures() {
        let Message::Failure(failure) = Message::failure(&error, 0) else {
            panic!("{error} is not a failure");
        };
        let told = RendezvousError::from(failure);
        assert_eq!(format!("{told:?}"), format!("{error:?}"));
    }
}

#[test]
fn an_error_that_only_the_sender_can_have_had_travels_as_its_reason() {
    let error = RendezvousError::EnvironmentIgnored;
    let Message::Failure(Failure::PeerFailed(4, reason)) = Message::failure(&error, 4) else {
        panic!("rank 4 failed");
    };
    assert_eq!(reason, error.to_string());
}

#[test]
fn the_longest_messages_fit_a_datagram() {
    let label = "\0".repeat(MAX_LABEL_BYTES);
    let contribution = Message::Contribution { rank: 7, label };
    let payload = vec![0; MAX_MESSAGE_BYTES];
    let packet = Packet::with_payload(&contribution, &payload, None);
    assert!(packet.bytes.len() <= MAX_DATAGRAM_BYTES);
    assert!(decode(&packet.bytes).is_ok());
    let error = RendezvousError::PeerFailed {
        rank: 7,
        reason: "\0".repeat(2 * MAX_REASON_BYTES),
    };
    assert!(bytes(&Message::failure(&error, 7)).len() <= MAX_DATAGRAM_BYTES);
}

#[test]
fn what_is_longer_than_allowed_is_refused() {
    let label = "work".to_owned();
    let contribution = Message::Contribution { rank: 1, label };
    let too_long = Packet::with_payload(&contribution, &vec![0; MAX_MESSAGE_BYTES + 1], None);
    let error = decode(&too_long.bytes).unwrap_err().to_string();
    assert_eq!(error, "a payload of 16385 bytes, 16384 are allowed");
    let label = "x".repeat(MAX_LABEL_BYTES + 1);
    let too_long = Message::Contribution { rank: 1, label };
    let error = decode(&bytes(&too_long)).unwrap_err().to_string();
    assert_eq!(error, "a label of 257 bytes, 256 are allowed");
}

#[test]
fn only_a_contribution_carries_a_payload_or_a_descriptor() {
    let descriptor = || Some(OwnedFd::from(tempfile::tempfile().unwrap()));
    for message in messages() {
        let carries = matches!(message, Message::Contribution { .. });
        let with_payload = [&bytes(&message)[..], b"more"].concat();
        assert_eq!(decode(&with_payload).is_ok(), carries, "{message:?}");
        let with_descriptor = Frame::decode(&bytes(&message), descriptor());
        assert_eq!(with_descriptor.is_ok(), carries, "{message:?}");
    }
}

#[test]
fn every_truncation_of_every_message_is_refused() {
    for message in messages() {
        let whole = bytes(&message);
        for length in 0..whole.len() {
            assert!(decode(&whole[..length]).is_err(), "{length} of {message:?}");
        }
    }
}
