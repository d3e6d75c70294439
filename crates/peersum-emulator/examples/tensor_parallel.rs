//! A row-parallel layer, as in every transformer block that is split over several GPUs: each rank
//! holds some of the weight's rows and the same columns of the activations, multiplies them, and
//! the all-reduce adds the partial products.
//!
//! ```sh
//! # On the GPUs that there are, else on the emulator:
//! cargo run -p peersum-emulator --example tensor_parallel -- 4
//! cargo run -p peersum-emulator --example tensor_parallel -- 4 emulator
//! ```
//!
//! The product is computed on the host to keep the example short; an engine enqueues its own kernel
//! on the communicator's stream. The weights are small integers, so that every sum is exact and the
//! result must equal that of one rank bit for bit.

use anyhow::{Context as _, ensure};
use peersum::cudarc::driver::CudaContext;
use peersum::device::DeviceStream;
use peersum::{Communicator, Output, Rendezvous};
use peersum_emulator::{EmulatorBuffer, EmulatorDevice};
use std::ops::Range;

const ROWS: usize = 4;
const INPUTS: usize = 240;
const OUTPUTS: usize = 64;

fn activation(row: usize, input: usize) -> f32 {
    ((row * 31 + input * 7) % 17) as f32 - 8.0
}

fn weight(input: usize, output: usize) -> f32 {
    ((input * 13 + output * 5) % 11) as f32 - 5.0
}

/// The product of the activations with the weight's rows in `inputs`.
fn multiply(inputs: Range<usize>) -> Vec<f32> {
    (0..ROWS)
        .flat_map(|row| (0..OUTPUTS).map(move |output| (row, output)))
        .map(|(row, output)| {
            inputs
                .clone()
                .map(|input| activation(row, input) * weight(input, output))
                .sum()
        })
        .collect()
}

/// One rank's part of the layer: the same code for a GPU and for the emulator.
fn layer<S: DeviceStream, B: Output<f32, S::Device>>(
    rendezvous: Rendezvous,
    stream: &S,
    upload: impl Fn(&[f32]) -> anyhow::Result<B>,
    download: impl Fn(&B) -> anyhow::Result<Vec<f32>>,
) -> anyhow::Result<Vec<f32>> {
    let (rank, world_size) = (rendezvous.rank() as usize, rendezvous.world_size() as usize);
    let mut communicator = Communicator::builder()
        .rendezvous(rendezvous)
        .max_bytes(ROWS * OUTPUTS * size_of::<f32>())
        .build(stream)?;
    let own_inputs = INPUTS * rank / world_size..INPUTS * (rank + 1) / world_size;
    let mut products = upload(&multiply(own_inputs))?;
    communicator.all_reduce_in_place(&mut products)?;
    // Only now are the sums valid; an engine does this once a step, where it reads its logits.
    communicator.synchronize()?;
    download(&products)
}

fn run_rank(rendezvous: Rendezvous, gpus: usize) -> anyhow::Result<Vec<f32>> {
    let rank = rendezvous.rank();
    if gpus == 0 {
        let stream = EmulatorDevice::new(rank).stream()?;
        let upload = |values: &[f32]| Ok(EmulatorBuffer::from_slice(values));
        layer(rendezvous, &stream, upload, |sums| Ok(sums.to_vec()))
    } else {
        let stream = peersum::open_context(rank % gpus as u32)?.new_stream()?;
        let upload = |values: &[f32]| Ok(stream.clone_htod(values)?);
        layer(rendezvous, &stream, upload, |sums| {
            Ok(stream.clone_dtoh(sums)?)
        })
    }
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let world_size: u32 = arguments
        .next()
        .map_or(Ok(2), |number| number.parse())
        .context("the first argument is the number of ranks, 2 to 8")?;
    let gpus = match arguments.next().as_deref() {
        Some("emulator") => 0,
        _ if peersum::cuda::driver_present().is_err() => 0,
        _ => CudaContext::device_count()?.max(0) as usize,
    };
    let expected = multiply(0..INPUTS);
    std::thread::scope(|scope| {
        let ranks: Vec<_> = Rendezvous::threads(world_size)
            .into_iter()
            .map(|rendezvous| scope.spawn(move || run_rank(rendezvous, gpus)))
            .collect();
        for (rank, thread) in ranks.into_iter().enumerate() {
            let sums = thread
                .join()
                .map_err(|_| anyhow::anyhow!("rank {rank} panicked"))??;
            ensure!(
                sums == expected,
                "rank {rank} differs from one rank's result"
            );
        }
        Ok(())
    })?;
    let on = match gpus {
        0 => "the emulator".to_owned(),
        1 => "one GPU that they share".to_owned(),
        _ => format!("{gpus} GPUs"),
    };
    println!("{world_size} ranks on {on}: {ROWS} x {OUTPUTS} outputs, equal to one rank's");
    Ok(())
}
