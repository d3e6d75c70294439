//! Ranks of another build: one rank's words in set-up are forged, and all others must refuse it
//! with both values.

use std::ops::Range;

use peersum::{Error, Rendezvous};
use peersum_emulator::EmulatorDevice;

use crate::stage::{PATIENCE, settings};

/// The exchanges of set-up that compare settings, in their order.
const LABELS: [&str; 2] = ["settings", "launch limits"];

/// The words of a genuine rank in the first exchanges.
fn genuine_words() -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for label in LABELS {
        let heard = listen(&words, label);
        words.push(heard);
    }
    words
}

/// A group of two in which this rank repeats the other's words as far as they are known, says
/// nonsense in the exchange behind, and hears what the other says there.
fn listen(known: &[String], label: &str) -> String {
    let mut ranks = Rendezvous::threads(2).into_iter();
    let (speaker, listener) = (ranks.next().unwrap(), ranks.next().unwrap());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let stream = EmulatorDevice::new(0).stream().unwrap();
            let refused = settings().rendezvous(speaker).build(&stream);
            let text = refused.err().unwrap().to_string();
            assert!(text.contains("cannot read"), "{text}");
        });
        let mut group = listener.join(PATIENCE).unwrap();
        for (label, words) in LABELS.into_iter().zip(known) {
            group.all_gather(label, words.as_bytes(), PATIENCE).unwrap();
        }
        let heard = group.all_gather(label, b"nonsense", PATIENCE).unwrap();
        String::from_utf8(heard[0].clone()).unwrap()
    })
}

/// A group in which one rank is of another build: it says in one exchange what `forge` makes of a
/// genuine rank's words. What the others' `build` says.
fn refusals(
    world_size: u32,
    forger: u32,
    forged: &str,
    forge: &(dyn Fn(&str) -> String + Sync),
) -> Vec<String> {
    let words = &genuine_words();
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..)
            .zip(Rendezvous::threads(world_size))
            .map(|(rank, rendezvous)| {
                scope.spawn(move || {
                    if rank == forger {
                        let mut group = rendezvous.join(PATIENCE).unwrap();
                        for (label, words) in LABELS.into_iter().zip(words) {
                            let said = if label == forged {
                                forge(words)
                            } else {
                                words.clone()
                            };
                            group.all_gather(label, said.as_bytes(), PATIENCE).unwrap();
                            if label == forged {
                                break;
                            }
                        }
                        return None;
                    }
                    let stream = EmulatorDevice::new(rank).stream().unwrap();
                    match settings().rendezvous(rendezvous).build(&stream) {
                        Err(error @ Error::SetupMismatch { .. }) => Some(error.to_string()),
                        Err(other) => panic!("rank {rank}: {other}"),
                        Ok(_) => panic!("rank {rank} was built beside a forged one"),
                    }
                })
            })
            .collect();
        ranks
            .into_iter()
            .filter_map(|rank| rank.join().unwrap())
            .collect()
    })
}

/// Where the value of a field lies in a message.
fn place(words: &str, field: &str) -> Range<usize> {
    let name = format!("\"{field}\":");
    let begin = words.find(&name).unwrap() + name.len();
    begin..begin + words[begin..].find([',', '}']).unwrap()
}

#[test]
fn a_rank_of_another_version_kernel_digest_or_dispatch_table_is_refused_by_all_with_both_values() {
    let cases = [
        ("settings", "version", "version", "0.0.9"),
        ("settings", "ABI version", "ABI version", "77"),
        ("settings", "kernel sources", "kernel sources", "0badc0de"),
        (
            "settings",
            "dispatch tables",
            "dispatch tables",
            "another-file",
        ),
        (
            "launch limits",
            "table_digest",
            "dispatch table",
            "0badc0de",
        ),
    ];
    for (label, field, what, forged) in cases {
        for (world_size, forger) in [(2, 0), (2, 1), (3, 0), (3, 2), (8, 5)] {
            let refusals = refusals(world_size, forger, label, &|words| {
                let mut words = words.to_owned();
                let place = place(&words, field);
                let is_text = words[place.clone()].starts_with('"');
                let quote = if is_text { "\"" } else { "" };
                words.replace_range(place, &format!("{quote}{forged}{quote}"));
                words
            });
            assert_eq!(refusals.len() as u32, world_size - 1);
            let genuine = genuine_words();
            let index = LABELS.iter().position(|other| *other == label).unwrap();
            let own = genuine[index][place(&genuine[index], field)].trim_matches('"');
            for refusal in &refusals {
                let forger = format!("rank {forger}");
                for part in [what, own, forged, "rank 0", &forger] {
                    assert!(refusal.contains(part), "{part:?} is not in {refusal:?}");
                }
                assert_eq!(refusal, &refusals[0], "all ranks say the same");
            }
        }
    }
}

#[test]
fn a_rank_whose_words_cannot_be_read_is_refused_by_all() {
    for label in LABELS {
        for refusal in refusals(3, 1, label, &|_| {
            "{\"words\": \"of another protocol\"}".into()
        }) {
            assert!(
                refusal.contains(label) && refusal.contains("rank 1"),
                "{refusal}"
            );
        }
    }
}
