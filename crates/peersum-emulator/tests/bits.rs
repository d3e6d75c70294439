//! Every algorithm returns the reference's bits on every rank, whatever the size, the alignment and the grid.

mod rig;

use half::bf16;
use peersum_artifact::{Algorithm, Family};
use rig::{Call, Setup, World, kinds, random_inputs, seeded};

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
