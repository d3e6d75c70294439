//! A whole all-reduce, compared with the reference: the proof that everything below it works.

use std::time::Duration;

use half::bf16;
use peersum::device::{Device, DeviceError, DeviceStream, MemorySharing};
use peersum::loader::LoadPolicy;
use peersum::{Communicator, Error, Rendezvous, reference};

use crate::bounded::STEPS;
use crate::ranks::in_threads;
use crate::report::{Finding, Subject};

/// Elements of each call: a partial unit of a small push, and sizes that other routes serve.
const LENGTHS: [usize; 3] = [1003, 16 << 10, 256 << 10];
const MAX_BYTES: usize = 512 << 10;

/// How many calls, over all ranks, gave a bit that is not the reference's; or the error of a rank.
pub(crate) type WrongCalls = Result<usize, (usize, Error)>;

/// Builds a communicator of one rank a stream, in threads of this process, and makes it sum random
/// numbers.
///
/// # Errors
/// The first error that is not merely the consequence of another rank's, with the number of its
/// stream.
pub(crate) fn all_reduce_between<S: DeviceStream + Send + Sync>(
    streams: &[S],
    policy: &LoadPolicy,
    patience: Duration,
) -> WrongCalls {
    let seed = fastrand::u64(..);
    let wrong = in_threads(streams, |stream, rendezvous| {
        wrong_calls(stream, rendezvous, policy.clone(), seed, patience)
    })?;
    Ok(wrong.iter().sum())
}

/// One rank's calls: how many gave other bits than the reference.
fn wrong_calls<S: DeviceStream>(
    stream: &S,
    rendezvous: Rendezvous,
    policy: LoadPolicy,
    seed: u64,
    patience: Duration,
) -> Result<usize, Error> {
    let (rank, world_size) = (rendezvous.rank() as usize, rendezvous.world_size());
    let mut communicator = Communicator::builder()
        .rendezvous(rendezvous)
        .load_policy(policy)
        .max_bytes(MAX_BYTES)
        .timeout(patience)
        .setup_timeout(patience)
        .build(stream)?;
    let device = S::Device::open(stream)?;
    let memory = device.allocate_shared(MAX_BYTES, MemorySharing::Auto)?;
    let address = device.allocation_address(&memory);
    let mut wrong = 0;
    for (call, len) in LENGTHS.into_iter().enumerate() {
        let inputs: Vec<Vec<bf16>> = (0..world_size)
            .map(|rank| values(seed ^ (call as u64) << 8 ^ u64::from(rank), len))
            .collect();
        let bytes: Vec<u8> = inputs[rank]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        // SAFETY: the memory holds the longest of the arrays.
        unsafe { device.write(address, &bytes)? };
        // SAFETY: the memory is aligned, holds `len` elements, and outlives the buffer, which is
        // disowned below.
        let mut buffer = unsafe { device.adopt::<bf16>(address, len) }?;
        let result = communicator
            .all_reduce_in_place(&mut buffer)
            .and_then(|()| communicator.synchronize());
        let disowned = S::Device::disown(buffer);
        result?;
        disowned?;
        let mut sums = vec![0; bytes.len()];
        // SAFETY: as for the write.
        unsafe { device.read(address, &mut sums)? };
        let inputs: Vec<&[bf16]> = inputs.iter().map(Vec::as_slice).collect();
        let expected = reference::all_reduce(&inputs);
        let right = sums
            .chunks_exact(size_of::<bf16>())
            .zip(&expected)
            .all(|(sum, expected)| sum == expected.to_le_bytes());
        wrong += usize::from(!right);
    }
    Ok(wrong)
}

/// Numbers whose sums need rounding. Every rank knows the numbers of all.
fn values(seed: u64, len: usize) -> Vec<bf16> {
    let mut random = fastrand::Rng::with_seed(seed);
    let numbers = std::iter::repeat_with(|| bf16::from_f32(random.f32() - 0.5));
    numbers.take(len).collect()
}

/// The finding about an all-reduce between ranks on GPUs or on the emulator.
pub(crate) fn all_reduce_finding(
    subject: Subject,
    world_size: usize,
    outcome: WrongCalls,
) -> Finding {
    let calls = LENGTHS.len();
    let of_gpus = subject != Subject::Emulator;
    let finding = match outcome {
        Ok(0) => {
            let seen = format!(
                "{world_size} ranks, {calls} calls of different sizes, every bit equal to the \
                 reference"
            );
            return Finding::works(subject, seen);
        }
        Ok(wrong) => {
            let results = calls * world_size;
            let seen = format!(
                "{world_size} ranks: {wrong} of {results} results differ from the reference"
            );
            Finding::not(subject, seen).meaning(if of_gpus {
                "do not use peersum on these GPUs; run `cargo xtask test-allreduce` and report \
                 what it says"
            } else {
                "run `cargo xtask test-allreduce --device emulator` and report what it says"
            })
        }
        Err((rank, error)) => {
            let seen = format!("{world_size} ranks, on rank {rank}: {error}");
            Finding::not(subject, seen)
        }
    };
    finding.blocking(of_gpus)
}

/// An all-reduce between the streams that `open` opens: two of the emulator, if there is no GPU.
pub fn emulator_finding<S: DeviceStream + Send + Sync>(
    patience: Duration,
    open: impl FnOnce() -> Result<[S; 2], DeviceError> + Send + 'static,
) -> Finding {
    Finding::within(patience * STEPS, Subject::Emulator, move || {
        let outcome = open()
            .map_err(|error| (0, error.into()))
            .and_then(|streams| all_reduce_between(&streams, &LoadPolicy::default(), patience));
        all_reduce_finding(Subject::Emulator, 2, outcome)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Verdict;

    #[test]
    fn one_wrong_bit_in_a_sum_makes_the_machine_unusable() {
        let right = all_reduce_finding(Subject::AllReduce, 8, Ok(0));
        assert_eq!((right.verdict, right.blocking), (Verdict::Works, false));
        let wrong = all_reduce_finding(Subject::AllReduce, 8, Ok(1));
        assert_eq!((wrong.verdict, wrong.blocking), (Verdict::Not, true));
        assert!(wrong.seen.contains("1 of 24 results"));
        assert!(!all_reduce_finding(Subject::Emulator, 2, Ok(1)).blocking);
    }
}
