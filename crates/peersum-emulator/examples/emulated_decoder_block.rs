//! A decoder block that is split over two ranks, without a GPU: `cargo run -p peersum-emulator
//! --example emulated_decoder_block`
//!
//! Each rank multiplies with its part of the weights. A call adds the parts of all ranks and the
//! residual, and normalises the rows for the next product: one call after attention and one after
//! the MLP. The products are computed on the host to keep the example short.

use half::bf16;
use peersum::reference::{self, NormNumbers};
use peersum::{Communicator, Rendezvous, RmsNorm};
use peersum_emulator::{EmulatorBuffer, EmulatorDevice};

const WORLD_SIZE: usize = 2;
const TOKENS: usize = 3;
const HIDDEN: usize = 64;
const NUMBERS: NormNumbers = NormNumbers {
    epsilon: 1e-6,
    weight_offset: 0.0,
};

/// What stands in for attention and for the MLP.
#[derive(Clone, Copy)]
enum Layer {
    Attention = 1,
    Mlp = 2,
}

fn numbers(count: usize, step: usize) -> Vec<bf16> {
    let number = |index| bf16::from_f32(((index * step) % 13) as f32 / 8.0 - 0.5);
    (0..count).map(number).collect()
}

/// One rank's part of a layer's output: the product of some columns of `hidden` with the same rows
/// of a weight.
fn partial(layer: Layer, rank: usize, hidden: &[bf16]) -> Vec<bf16> {
    let weight = numbers(HIDDEN * HIDDEN, 3 + layer as usize);
    let inputs = HIDDEN * rank / WORLD_SIZE..HIDDEN * (rank + 1) / WORLD_SIZE;
    let product = |row: usize, output: usize| -> f32 {
        let of_input = |input| {
            (
                hidden[row * HIDDEN + input],
                weight[input * HIDDEN + output],
            )
        };
        let factors = inputs.clone().map(of_input);
        factors.map(|(x, w)| x.to_f32() * w.to_f32()).sum()
    };
    (0..TOKENS * HIDDEN)
        .map(|index| bf16::from_f32(product(index / HIDDEN, index % HIDDEN)))
        .collect()
}

/// The weight of the RMSNorm behind a layer.
fn gamma(layer: Layer) -> Vec<bf16> {
    numbers(HIDDEN, 5 + layer as usize)
}

fn norm(weight: &EmulatorBuffer<bf16>) -> RmsNorm<'_, EmulatorBuffer<bf16>> {
    RmsNorm {
        weight,
        epsilon: NUMBERS.epsilon,
        weight_offset: NUMBERS.weight_offset,
    }
}

/// The block by one rank. Returns the normalised rows and the residual.
fn run_rank(rendezvous: Rendezvous) -> anyhow::Result<[Vec<bf16>; 2]> {
    let rank = rendezvous.rank() as usize;
    let stream = EmulatorDevice::new(rendezvous.rank()).stream()?;
    let mut communicator = Communicator::builder()
        .rendezvous(rendezvous)
        .max_bytes(1 << 20)
        .build(&stream)?;
    let tokens = numbers(TOKENS * HIDDEN, 7);
    let mut residual = EmulatorBuffer::from_slice(&tokens);
    let mut hidden = EmulatorBuffer::<bf16>::zeroed(TOKENS * HIDDEN);
    let after_attention = EmulatorBuffer::from_slice(&gamma(Layer::Attention));
    let after_mlp = EmulatorBuffer::from_slice(&gamma(Layer::Mlp));

    let attention = EmulatorBuffer::from_slice(&partial(Layer::Attention, rank, &tokens));
    communicator.all_reduce_add_rms_norm(
        &attention,
        &mut residual,
        &norm(&after_attention),
        &mut hidden,
    )?;
    // The host reads the result here. An engine enqueues its kernels and waits once a step.
    communicator.synchronize()?;
    let mlp = EmulatorBuffer::from_slice(&partial(Layer::Mlp, rank, &hidden.to_vec()));
    communicator.all_reduce_add_rms_norm(&mlp, &mut residual, &norm(&after_mlp), &mut hidden)?;
    communicator.synchronize()?;
    Ok([hidden.to_vec(), residual.to_vec()])
}

/// The same block by the reference.
fn expected() -> [Vec<bf16>; 2] {
    let tokens = numbers(TOKENS * HIDDEN, 7);
    let (mut hidden, mut residual) = (tokens.clone(), tokens);
    for layer in [Layer::Attention, Layer::Mlp] {
        let parts = [0, 1].map(|rank| partial(layer, rank, &hidden));
        let sum = reference::all_reduce(&[&parts[0][..], &parts[1]]);
        residual = reference::add_residual(&sum, &residual);
        hidden = reference::rms_norm(&residual, &gamma(layer), NUMBERS);
    }
    [hidden, residual]
}

fn main() -> anyhow::Result<()> {
    let expected = expected();
    std::thread::scope(|scope| {
        let ranks: Vec<_> = Rendezvous::threads(WORLD_SIZE as u32)
            .into_iter()
            .map(|rendezvous| scope.spawn(move || run_rank(rendezvous)))
            .collect();
        for (rank, thread) in ranks.into_iter().enumerate() {
            let found = thread
                .join()
                .map_err(|_| anyhow::anyhow!("rank {rank} panicked"))??;
            anyhow::ensure!(found == expected, "rank {rank} differs from the reference");
            println!("rank {rank}: the reference's bits, {:?}...", &found[0][..3]);
        }
        Ok(())
    })
}
