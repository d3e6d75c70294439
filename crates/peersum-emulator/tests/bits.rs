//! Every algorithm returns the reference's bits on every rank, whatever the size, the alignment and
//! the grid.

mod rig;

use half::{bf16, f16};
use peersum::Element;
use peersum_artifact::{Algorithm, Family};
use rig::{Arrays, Call, Setup, World, bits, from_bits, kinds, random_inputs, seeded};

#[test]
fn two_ranks_that_push_in_one_shot_get_the_references_bits() {
    let mut generator = seeded();
    let world = World::new(2, &Setup::default());
    let call = Call::new(Family::Push, Algorithm::OneShot, 1, 8);
    let inputs = random_inputs::<bf16>(&mut generator, 2, 1000);
    let arrays = world.start(&call, &inputs);
    world.assert_reduced(&call, &inputs, &arrays);
}

#[test]
fn every_algorithm_source_dtype_and_group_gives_the_references_bits() {
    let mut generator = seeded();
    for world_size in 2..=8 {
        let world = World::new(world_size, &Setup::default());
        for kind in kinds() {
            for len in [1, 7, 16, 1000, 4096] {
                for_each_dtype!(T => {
                    let inputs = random_inputs::<T>(&mut generator, world.size(), len);
                    let arrays = world.start(&kind, &inputs);
                    world.assert_reduced(&kind, &inputs, &arrays);
                });
            }
        }
    }
}

#[test]
fn neither_alignment_that_differs_by_rank_nor_reducing_in_place_changes_a_bit() {
    let mut generator = seeded();
    for world_size in [2, 3, 5, 8] {
        let world = World::new(world_size, &Setup::default());
        for kind in kinds() {
            for (misaligned, in_place) in [(true, false), (false, true), (true, true)] {
                let call = Call {
                    misaligned,
                    in_place,
                    ..kind
                };
                if call.symmetric && call.in_place {
                    continue;
                }
                for len in [1, 9, 17, 333, 1025] {
                    for_each_dtype!(T => {
                        let inputs = random_inputs::<T>(&mut generator, world.size(), len);
                        let arrays = world.start(&call, &inputs);
                        world.assert_reduced(&call, &inputs, &arrays);
                    });
                }
            }
        }
    }
}

#[test]
fn empty_marks_infinities_zeros_and_subnormals_come_out_as_the_contract_says() {
    let world = World::new(3, &Setup::default());
    for kind in kinds() {
        for_each_dtype!(T => special_values::<T>(&world, &kind));
    }
}

/// Each list is what ranks 0, 1 and 2 hold in one element.
fn special_values<T: Element>(world: &World, call: &Call) {
    let (infinity, smallest) = (T::round(f32::INFINITY).to_word(), 1);
    let sign = if size_of::<T>() == 4 {
        0x8000_0000
    } else {
        0x8000
    };
    let one = T::round(1.0).to_word();
    let columns = [
        [0xFFFF_FFFF; 3],
        [0xFFFF_FFFF, one, one],
        [one, 0xFFFF_FFFF, one],
        [one, one, 0xFFFF_FFFF],
        [sign; 3],
        [sign, 0, sign],
        [0; 3],
        [infinity, infinity | sign, one],
        [infinity, one, one],
        [infinity | sign; 3],
        [smallest; 3],
        [smallest | sign, smallest, 0],
        [one, one | sign, sign],
    ];
    // A prime length, so that each column comes to stand in each lane of a unit.
    let inputs: Vec<Vec<T>> = (0..3)
        .map(|rank| {
            (0..521)
                .map(|index| from_bits(columns[index % columns.len()][rank]))
                .collect()
        })
        .collect();
    let arrays = world.start(call, &inputs);
    world.assert_reduced(call, &inputs, &arrays);
}

trait ToWord {
    fn to_word(self) -> u32;
}

impl<T: Element> ToWord for T {
    fn to_word(self) -> u32 {
        bits(&[self])[0]
    }
}

/// A random call of an element type that is chosen by the caller.
fn random_call(generator: &mut fastrand::Rng, previous: &mut Option<bool>) -> Call {
    let kinds = kinds();
    let mut call = kinds[generator.usize(..kinds.len())];
    call.blocks = generator.u32(1..=3);
    call.threads = [8, 16, 24, 32][generator.usize(..4)];
    call.misaligned = generator.bool();
    call.in_place = !call.symmetric && generator.bool();
    // The rig has one symmetric buffer a rank, so its alignment says which part of it is used.
    if call.symmetric {
        call.misaligned = *previous.get_or_insert(call.misaligned);
    }
    call
}

fn mixed_calls(world: &World, generator: &mut fastrand::Rng, calls: usize) {
    enum Done {
        F16(Call, Vec<Vec<f16>>, Vec<Arrays<f16>>),
        Bf16(Call, Vec<Vec<bf16>>, Vec<Arrays<bf16>>),
        F32(Call, Vec<Vec<f32>>, Vec<Arrays<f32>>),
    }
    fn start<T: Element>(
        world: &World,
        generator: &mut fastrand::Rng,
        call: &Call,
        len: usize,
    ) -> (Vec<Vec<T>>, Vec<Arrays<T>>) {
        let inputs = random_inputs(generator, world.size(), len);
        let arrays = world.start(call, &inputs);
        (inputs, arrays)
    }
    let mut done = Vec::new();
    let mut alignment = None;
    for _ in 0..calls {
        let call = random_call(generator, &mut alignment);
        let len = generator.usize(1..1500);
        done.push(match generator.u32(..3) {
            0 => {
                let (inputs, arrays) = start(world, generator, &call, len);
                Done::F16(call, inputs, arrays)
            }
            1 => {
                let (inputs, arrays) = start(world, generator, &call, len);
                Done::Bf16(call, inputs, arrays)
            }
            _ => {
                let (inputs, arrays) = start(world, generator, &call, len);
                Done::F32(call, inputs, arrays)
            }
        });
    }
    for done in done {
        match done {
            Done::F16(call, inputs, arrays) => world.assert_reduced(&call, &inputs, &arrays),
            Done::Bf16(call, inputs, arrays) => world.assert_reduced(&call, &inputs, &arrays),
            Done::F32(call, inputs, arrays) => world.assert_reduced(&call, &inputs, &arrays),
        }
    }
}

#[test]
fn calls_of_both_families_with_changing_grids_follow_each_other_without_a_pause() {
    let mut generator = seeded();
    for world_size in 2..=8 {
        let world = World::new(world_size, &Setup::default());
        mixed_calls(&world, &mut generator, 40);
    }
}

#[test]
fn counters_may_wrap() {
    let mut generator = seeded();
    // The sequence of 16 bits, the push epoch of 32 bits, and the pull epoch past 32 bits.
    for (push_epoch, pull_epoch) in [
        (65_520, 1),
        (1, 65_520),
        (u32::MAX - 5, 1),
        (0, (1 << 32) - 5),
        (u32::MAX - 5, 65_530),
    ] {
        let world = World::new(
            3,
            &Setup {
                push_epoch,
                pull_epoch,
                ..Setup::default()
            },
        );
        mixed_calls(&world, &mut generator, 40);
    }
}

#[test]
fn a_thousand_threads_run_at_once() {
    let mut generator = seeded();
    let world = World::new(8, &Setup::default());
    for kind in kinds() {
        let call = Call {
            blocks: 2,
            threads: 64,
            ..kind
        };
        let inputs = random_inputs::<f32>(&mut generator, 8, 4096);
        let arrays = world.start(&call, &inputs);
        world.assert_reduced(&call, &inputs, &arrays);
    }
}
