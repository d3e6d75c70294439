//! What set-up refuses, and what every rank is told of it.

use std::time::Duration;

use peersum::{Communicator, CommunicatorBuilder, Error, Rendezvous};
use peersum_emulator::{Emulator, EmulatorBuffer, EmulatorDevice, EmulatorStream};

use crate::stage::{Comm, Content, assert_bits, build, expected, input, settings};

const LEN: usize = 100;

/// What `build` says on each rank, with settings that may differ by rank.
fn outcomes(
    world_size: u32,
    settings: impl Fn(u32) -> CommunicatorBuilder + Sync,
) -> Vec<Result<Comm, Error>> {
    let settings = &settings;
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..)
            .zip(Rendezvous::threads(world_size))
            .map(|(rank, rendezvous)| {
                scope.spawn(move || {
                    let stream = EmulatorDevice::new(rank).stream().unwrap();
                    settings(rank).rendezvous(rendezvous).build(&stream)
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[track_caller]
pub(crate) fn error(outcome: Result<Comm, Error>) -> Error {
    match outcome {
        Ok(_) => panic!("the communicator was built"),
        Err(error) => error,
    }
}

/// A table file for the emulator in which every call takes one route.
fn table(route: &str) -> String {
    let row =
        |route: &str| format!(r#"[{{"max_bytes":null,"route":"{route}","blocks":2,"threads":8}}]"#);
    format!(
        r#"{{"schema":1,"tables":[{{"arch":null,"world_sizes":[2,3],"link":"emulator","ordinary":{},
           "symmetric":{},"symmetric_in_place":{}}}]}}"#,
        row(route),
        row("symmetric_one_shot"),
        row("symmetric_two_shot")
    )
}

#[test]
fn settings_that_differ_are_named_with_both_values_on_every_rank() {
    let odd = |rank: u32| rank == 2;
    type Differ = Box<dyn Fn(u32) -> CommunicatorBuilder + Sync>;
    let cases: Vec<(&str, &str, &str, Differ)> = vec![
        (
            "max_bytes",
            "65536",
            "4096",
            Box::new(move |rank| settings().max_bytes(if odd(rank) { 4096 } else { 65536 })),
        ),
        (
            "push_half_bytes",
            "8192",
            "1024",
            Box::new(move |rank| settings().push_half_bytes(if odd(rank) { 1024 } else { 8192 })),
        ),
        (
            "start epochs",
            "(7, 1)",
            "(8, 1)",
            Box::new(move |rank| settings().start_epochs(if odd(rank) { 8 } else { 7 }, 1)),
        ),
        (
            "dispatch tables",
            "shipped",
            "",
            Box::new(move |rank| {
                if odd(rank) {
                    settings().dispatch_tables(table("pull_one_shot"))
                } else {
                    settings()
                }
            }),
        ),
    ];
    for (what, value, other_value, settings) in cases {
        for outcome in outcomes(3, settings) {
            let text = error(outcome).to_string();
            for part in ["rank 0", "rank 2", what, value, other_value] {
                assert!(text.contains(part), "{part:?} is not in {text:?}");
            }
        }
    }
}

#[test]
fn a_rank_that_expects_another_world_size_is_refused_with_both_numbers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sockets");
    let path = &path;
    std::thread::scope(|scope| {
        let wrong = scope.spawn(move || {
            let stream = EmulatorDevice::new(1).stream().unwrap();
            let rendezvous = Rendezvous::unix(path, "run", 1, 3);
            error(settings().rendezvous(rendezvous).build(&stream)).to_string()
        });
        let first = scope.spawn(move || {
            let stream = EmulatorDevice::new(0).stream().unwrap();
            let rendezvous = Rendezvous::unix(path, "run", 0, 2);
            let settings = settings().setup_timeout(Duration::from_secs(2));
            error(settings.rendezvous(rendezvous).build(&stream)).to_string()
        });
        let wrong = wrong.join().unwrap();
        assert!(wrong.contains("world size of 3, rank 0 of 2"), "{wrong}");
        // The group that it wanted to join goes on waiting for its own rank 1.
        let first = first.join().unwrap();
        assert!(first.contains("for rank 1"), "{first}");
    });
}

#[test]
fn settings_without_a_meaning_are_refused() {
    let stream = EmulatorDevice::new(0).stream().unwrap();
    let refusal = |settings: CommunicatorBuilder, world_size: u32| {
        let rendezvous = Rendezvous::threads(world_size).remove(0);
        error(settings.rendezvous(rendezvous).build(&stream)).to_string()
    };
    assert!(refusal(settings(), 9).contains("9 ranks"));
    assert!(refusal(settings().max_bytes(0), 2).contains("max_bytes"));
    assert!(refusal(settings().max_bytes(1 << 35), 2).contains("32 GiB"));
    assert!(refusal(settings().dispatch_tables("{}"), 1).contains("table"));
    let nobody = error(settings().build(&stream)).to_string();
    assert!(nobody.contains("rendezvous"), "{nobody}");
}

#[test]
fn a_bad_table_is_refused_on_every_rank_and_a_good_one_is_used() {
    for outcome in outcomes(2, |_| {
        settings().dispatch_tables(table("symmetric_two_shot"))
    }) {
        assert!(matches!(error(outcome), Error::Table(_)));
    }
    std::thread::scope(|scope| {
        for rendezvous in Rendezvous::threads(2) {
            scope.spawn(move || {
                let mut comm = build(
                    settings().dispatch_tables(table("pull_two_shot")),
                    rendezvous,
                );
                reduce(&mut comm, 1);
                let plan = comm
                    .dispatch_table()
                    .plan(peersum::dispatch::Placement::Ordinary, 4);
                assert_eq!(plan.route, peersum::dispatch::Route::PullTwoShot);
            });
        }
    });
}

/// A call that is compared with the reference.
pub(crate) fn reduce(comm: &mut Comm, seed: u64) {
    let mut buffer =
        EmulatorBuffer::from_slice(&input::<f32>(seed, comm.rank(), LEN, Content::Special));
    comm.all_reduce_in_place(&mut buffer).unwrap();
    comm.synchronize().unwrap();
    let expected = expected::<f32>(seed, comm.world_size(), LEN, Content::Special);
    assert_bits(&buffer.to_vec(), &expected, &seed);
}

/// Both ranks of a new group, each built by a thread of its own on the stream given for it.
pub(crate) fn pair(
    settings: fn() -> CommunicatorBuilder,
    streams: &[EmulatorStream; 2],
) -> [Result<Comm, Error>; 2] {
    std::thread::scope(|scope| {
        let mut ranks = Rendezvous::threads(2)
            .into_iter()
            .zip(streams)
            .map(|(rendezvous, stream)| {
                scope.spawn(move || settings().rendezvous(rendezvous).build(stream))
            })
            .collect::<Vec<_>>()
            .into_iter()
            .map(|rank| rank.join().unwrap());
        [ranks.next().unwrap(), ranks.next().unwrap()]
    })
}

/// Runs both ranks' part of `program` on threads, and drops the two together.
pub(crate) fn run_pair(pair: [Comm; 2], program: impl Fn(&mut Comm) + Sync) {
    let program = &program;
    std::thread::scope(|scope| {
        for mut comm in pair {
            scope.spawn(move || program(&mut comm));
        }
    });
}

#[test]
fn a_stream_carries_one_communicator_and_is_free_again_when_that_is_gone() {
    let streams = [0, 1].map(|index| EmulatorDevice::new(index).stream().unwrap());
    let first = pair(settings, &streams).map(Result::unwrap);
    for outcome in pair(
        || settings().setup_timeout(Duration::from_secs(2)),
        &streams,
    ) {
        assert!(matches!(error(outcome), Error::StreamTaken));
    }
    run_pair(first, |comm| reduce(comm, 1));
    let second = pair(settings, &streams).map(Result::unwrap);
    run_pair(second, |comm| reduce(comm, 2));
}

#[test]
fn memory_is_what_the_formula_says() {
    std::thread::scope(|scope| {
        for rendezvous in Rendezvous::threads(2) {
            scope.spawn(move || {
                let settings = settings().max_bytes(1 << 20).push_half_bytes(1 << 19);
                let mut comm: Communicator<Emulator> = build(settings, rendezvous);
                let fixed = comm.memory_bytes() - 2 * (1 << 20) - 2 * (1 << 19);
                assert!(fixed < 64 << 10, "control block: {fixed}");
                let before = comm.memory_bytes();
                let buffer = comm.symmetric_alloc::<f32>(1 << 16).unwrap();
                assert_eq!(comm.memory_bytes() - before, 4 << 16);
                drop(buffer);
            });
        }
    });
}
