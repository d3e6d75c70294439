//! Several communicators of one process on the same devices.

use std::sync::Barrier;
use std::time::Duration;

use peersum::{Communicator, CommunicatorBuilder, Error, Rendezvous};
use peersum_emulator::{EmulatorBuffer, EmulatorDevice, EmulatorOptions, EmulatorStream};

use crate::setup::{error, pair, reduce, run_pair};
use crate::stage::{Comm, Content, PATIENCE, assert_bits, expected, input};

/// Settings of a program that leaves the grid to the library.
fn defaults() -> CommunicatorBuilder {
    Communicator::builder()
        .max_bytes(64 << 10)
        .timeout(PATIENCE)
        .setup_timeout(PATIENCE)
}

/// A device that runs two blocks for each of its multiprocessors at once. Tests of this process run
/// at the same time, so each has devices of its own.
fn device(index: u32, multiprocessors: u32) -> EmulatorDevice {
    let mut options = EmulatorOptions::default();
    options.multiprocessors = multiprocessors;
    EmulatorDevice::with_options(index, &options)
}

/// New streams of two devices, or of the same device twice.
fn streams(devices: [&EmulatorDevice; 2]) -> [EmulatorStream; 2] {
    devices.map(|device| device.stream().unwrap())
}

#[test]
fn two_default_communicators_run_at_once_with_opposite_enqueue_orders_and_a_third_is_refused() {
    // Four seats each. The shipped rows have up to two blocks, which are half of them.
    let devices = [4711, 4712].map(|index| device(index, 2));
    let new = || streams([&devices[0], &devices[1]]);
    let first = pair(defaults, &new()).map(Result::unwrap);
    let second = pair(defaults, &new()).map(Result::unwrap);
    for comm in first.iter().chain(&second) {
        assert_eq!(comm.max_blocks(), 2, "the share is a constant");
    }
    for refused in pair(defaults, &new()) {
        let refusal = error(refused);
        let Error::DeviceFull {
            capacity: 4,
            reserved: 4,
            ranks: 1,
            blocks: 2,
            ..
        } = &refusal
        else {
            panic!("{refusal:?}");
        };
        let text = refusal.to_string();
        assert!(text.contains("max_blocks(n)"), "{text}");
    }
    // One thread a rank enqueues all calls of both; the ranks begin with different communicators.
    let programs = first.into_iter().zip(second);
    std::thread::scope(|scope| {
        for (mut first, mut second) in programs {
            scope.spawn(move || {
                if first.rank() == 0 {
                    enqueue_both([(1, &mut first), (2, &mut second)]);
                } else {
                    enqueue_both([(2, &mut second), (1, &mut first)]);
                }
            });
        }
    });
    // All seats are free again. Two smaller ones and a default one fit.
    let smaller = || defaults().max_blocks(1);
    let third = pair(defaults, &new()).map(Result::unwrap);
    let fourth = pair(smaller, &new()).map(Result::unwrap);
    let fifth = pair(smaller, &new()).map(Result::unwrap);
    std::thread::scope(|scope| {
        for group in [third, fourth, fifth] {
            scope.spawn(|| run_pair(group, |comm| reduce(comm, 3)));
        }
    });
}

/// Many calls of each communicator, eager and as graphs, before anything is waited for.
fn enqueue_both(mut communicators: [(u64, &mut Comm); 2]) {
    // From 4 KB on the grid has two blocks.
    const LEN: usize = 5000;
    const ROUNDS: u64 = 5;
    for in_graph in [false, true] {
        let seed = |group: u64, round: u64| group * 100 + round;
        let mut buffers = communicators.each_ref().map(|(group, comm)| {
            let content =
                |round| input::<f32>(seed(*group, round), comm.rank(), LEN, Content::Ordinary);
            (0..ROUNDS)
                .map(|round| EmulatorBuffer::from_slice(&content(round)))
                .collect::<Vec<_>>()
        });
        let mut graphs = Vec::new();
        for ((_, comm), buffers) in communicators.iter_mut().zip(&mut buffers) {
            if in_graph {
                comm.capture_begin().unwrap();
            }
            for buffer in buffers {
                comm.all_reduce_in_place(buffer).unwrap();
            }
            if in_graph {
                // SAFETY: the buffers live until both communicators have been waited for.
                graphs.push(unsafe { comm.capture_end() }.unwrap());
            }
        }
        for (graph, (_, comm)) in graphs.iter().zip(&mut communicators) {
            graph.launch(comm).unwrap();
        }
        for ((group, comm), buffers) in communicators.iter_mut().zip(&buffers) {
            comm.synchronize().unwrap();
            for (round, buffer) in (0..).zip(buffers) {
                let expected = expected::<f32>(seed(*group, round), 2, LEN, Content::Ordinary);
                assert_bits(&buffer.to_vec(), &expected, &(*group, round, in_graph));
            }
        }
    }
}

#[test]
fn groups_that_are_built_at_once_never_hold_more_than_the_devices_seats_together() {
    const ROUNDS: usize = 20;
    // 64 seats; each group wants 40.
    let devices = [4721, 4722].map(|index| device(index, 32));
    let wanted = || {
        let patience = Duration::from_secs(5);
        defaults().max_blocks(40).setup_timeout(patience)
    };
    let start = &Barrier::new(4);
    let mut built = 0;
    for _ in 0..ROUNDS {
        let groups = [(), ()].map(|()| {
            let streams = streams([&devices[0], &devices[1]]);
            Rendezvous::threads(2).into_iter().zip(streams)
        });
        let outcomes: Vec<Result<Comm, Error>> = std::thread::scope(|scope| {
            let ranks: Vec<_> = groups
                .into_iter()
                .flatten()
                .map(|(rendezvous, stream)| {
                    scope.spawn(move || {
                        start.wait();
                        wanted().rendezvous(rendezvous).build(&stream)
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        let ranks: Vec<Comm> = outcomes.into_iter().filter_map(Result::ok).collect();
        assert!(ranks.len() <= 2, "two groups of 40 blocks have 64 seats");
        assert!(ranks.iter().all(|comm| comm.max_blocks() == 40));
        built += ranks.len();
        // A rank waits for its peer when it is dropped.
        std::thread::scope(|scope| {
            for comm in ranks {
                scope.spawn(move || drop(comm));
            }
        });
    }
    println!("{built} of {} ranks were built", 2 * ROUNDS);
    // Whatever failed has given its seats back.
    let whole = || defaults().max_blocks(64);
    let all = pair(whole, &streams([&devices[0], &devices[1]])).map(Result::unwrap);
    assert!(all.iter().all(|comm| comm.max_blocks() == 64));
    run_pair(all, |comm| reduce(comm, 1));
}

#[test]
fn ranks_of_one_device_share_its_seats_and_max_blocks_is_never_cut_to_what_others_left() {
    // 64 seats, and both ranks are on the device.
    let device = device(4731, 32);
    let new = || streams([&device, &device]);
    let first = pair(|| defaults().max_blocks(20), &new()).map(Result::unwrap);
    assert!(first.iter().all(|comm| comm.max_blocks() == 20));
    // Which rank is refused first is not told beforehand; the other hears of it.
    let refusals = pair(|| defaults().max_blocks(13), &new()).map(error);
    let text = refusals.map(|error| error.to_string()).join("\n");
    for part in ["64 blocks", "may use 40", "2 x 13", "1 to 12"] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    let second = pair(|| defaults().max_blocks(12), &new()).map(Result::unwrap);
    assert!(second.iter().all(|comm| comm.max_blocks() == 12));
    std::thread::scope(|scope| {
        for group in [first, second] {
            scope.spawn(|| run_pair(group, |comm| (0..10).for_each(|seed| reduce(comm, seed))));
        }
    });
    // More than the device has is cut to what it has, which is a constant.
    let all = pair(|| defaults().max_blocks(256), &new()).map(Result::unwrap);
    assert!(all.iter().all(|comm| comm.max_blocks() == 32));
    run_pair(all, |comm| reduce(comm, 3));
}
