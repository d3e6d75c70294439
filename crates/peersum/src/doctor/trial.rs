//! A whole all-reduce, compared with the reference: the proof that everything below it works.

use std::time::Duration;

use half::bf16;

use super::exchange::{in_threads, is_consequence, random_seed};
use crate::communicator::Communicator;
use crate::device::{Device, DeviceStream, MemorySharing};
use crate::error::Error;
use crate::loader::LoadPolicy;
use crate::reference;
use crate::rendezvous::Rendezvous;

/// Elements of each call: a partial unit of a small push, and sizes that other routes serve.
const LENGTHS: [usize; 3] = [1003, 16 << 10, 256 << 10];
const MAX_BYTES: usize = 512 << 10;

/// What an all-reduce between threads of this process came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reduced {
    /// Calls made by each rank.
    pub calls: usize,
    /// Of these, those with a bit that is not the reference's, over all ranks.
    pub wrong: usize,
}

/// Builds a communicator of one rank a stream, in threads of this process, and makes it sum random numbers.
///
/// # Errors
/// The first error that is no mere consequence of another rank's, with the number of the stream.
pub fn all_reduce_between<S: DeviceStream + Send + Sync>(
    streams: &[S],
    policy: &LoadPolicy,
    patience: Duration,
) -> Result<Reduced, (usize, Error)> {
    let seed = random_seed().map_err(|error| (0, error.into()))?;
    let outcomes = in_threads(streams, |stream, rendezvous| {
        wrong_calls(stream, rendezvous, policy.clone(), seed, patience)
    });
    let mut reduced = Reduced {
        calls: LENGTHS.len(),
        wrong: 0,
    };
    let mut consequence = None;
    for (index, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Ok(wrong) => reduced.wrong += wrong,
            Err(error) if is_consequence(&error) => consequence = Some((index, error)),
            Err(error) => return Err((index, error)),
        }
    }
    consequence.map_or(Ok(reduced), Err)
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
        // SAFETY: the memory is aligned, holds `len` elements, outlives the buffer, which is disowned below.
        let mut buffer = unsafe { device.adopt::<bf16>(address, len) };
        let result = communicator
            .all_reduce_in_place(&mut buffer)
            .and_then(|()| communicator.synchronize());
        S::Device::disown(buffer);
        result?;
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

/// Numbers whose sums need rounding: SplitMix64, of which every rank knows every rank's.
fn values(seed: u64, len: usize) -> Vec<bf16> {
    (1..=len as u64)
        .map(|index| {
            let mut word = seed.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            bf16::from_f32((word >> 40) as f32 / 16_777_216.0 - 0.5)
        })
        .collect()
}
