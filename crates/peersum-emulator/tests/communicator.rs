//! The communicator of `peersum` on this device: what programs see.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use half::bf16;
use peersum::reference::all_reduce;
use peersum::{Communicator, Rendezvous};
use peersum_emulator::{EmulatorBuffer, EmulatorDevice};

#[test]
fn ranks_that_are_threads_reduce_through_the_communicator() {
    let inputs: Vec<Vec<bf16>> = (0..3)
        .map(|rank| {
            (0..999)
                .map(|index| bf16::from_f32((index + rank) as f32))
                .collect()
        })
        .collect();
    let slices: Vec<&[bf16]> = inputs.iter().map(Vec::as_slice).collect();
    let expected: Vec<u16> = all_reduce(&slices)
        .iter()
        .map(|element| element.to_bits())
        .collect();
    std::thread::scope(|scope| {
        for (rank, rendezvous) in (0..).zip(Rendezvous::threads(3)) {
            let (inputs, expected) = (&inputs, &expected);
            scope.spawn(move || {
                let stream = EmulatorDevice::new(rank).stream().unwrap();
                let mut communicator = <Communicator>::builder()
                    .rendezvous(rendezvous)
                    .max_bytes(1 << 16)
                    .timeout(Duration::from_secs(60))
                    .build(&stream)
                    .unwrap();
                let input = EmulatorBuffer::from_slice(&inputs[rank as usize]);
                let mut output = EmulatorBuffer::<bf16>::zeroed(999);
                communicator.all_reduce(&input, &mut output).unwrap();
                communicator.synchronize().unwrap();
                let found: Vec<u16> = output
                    .to_vec()
                    .iter()
                    .map(|element| element.to_bits())
                    .collect();
                assert_eq!(&found, expected);

                let mut wide = EmulatorBuffer::<bf16>::zeroed(1002);
                wide.copy_from_slice(
                    &[&[bf16::ZERO; 3], inputs[rank as usize].as_slice()].concat(),
                );
                communicator
                    .all_reduce_in_place(&mut wide.slice_mut(3..))
                    .unwrap();
                communicator.synchronize().unwrap();
                let found: Vec<u16> = wide.to_vec()[3..]
                    .iter()
                    .map(|element| element.to_bits())
                    .collect();
                assert_eq!(&found, expected);
            });
        }
    });
}
