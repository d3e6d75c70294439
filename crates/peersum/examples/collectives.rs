//! The calls besides the all-reduce, by two ranks: threads of one process, each on a GPU of its own
//! or all on the only one.
//!
//! ```sh
//! CUDA_DEVICE_MAX_CONNECTIONS=32 cargo run --example collectives
//! ```
//!
//! A sequence-parallel layer keeps only some rows of its activations on each rank: `reduce_scatter`
//! sums the ranks' partial outputs and gives each rank its rows, and `all_gather` puts the rows
//! together for the next product. Then each rank has the logits of its part of the vocabulary:
//! `all_gather` makes them whole, rank 0 draws a token, and `broadcast` gives it to all.

use half::bf16;
use peersum::{Communicator, Rendezvous, reference};

const WORLD_SIZE: usize = 2;
const ROWS: usize = 6;
const HIDDEN: usize = 20;
const VOCABULARY: usize = 50;

fn numbers(count: usize, step: usize) -> Vec<bf16> {
    let number = |index| bf16::from_f32(((index * step) % 13) as f32 / 8.0 - 0.5);
    (0..count).map(number).collect()
}

/// What stands in for the output of a layer whose weights are split over the ranks.
fn partial(rank: usize) -> Vec<bf16> {
    numbers(ROWS * HIDDEN, 3 + rank)
}

/// What stands in for the logits of a rank's part of the vocabulary.
fn logits(rank: usize) -> Vec<bf16> {
    numbers(VOCABULARY / WORLD_SIZE, 7 + rank)
}

/// A token at random, by the probabilities that the logits stand for.
fn draw(logits: &[bf16]) -> u32 {
    let gumbel = |logit: &bf16| logit.to_f32() - (-fastrand::f32().ln()).ln();
    let drawn = logits.iter().map(gumbel).enumerate();
    let largest = drawn.max_by(|a, b| a.1.total_cmp(&b.1));
    largest.map_or(0, |(token, _)| token as u32)
}

/// Returns the hidden rows, the logits and the token of a rank.
fn run_rank(rendezvous: Rendezvous) -> anyhow::Result<(Vec<bf16>, Vec<bf16>, u32)> {
    let rank = rendezvous.rank() as usize;
    let stream = peersum::open_context(rendezvous.rank())?.new_stream()?;
    let mut communicator = Communicator::builder()
        .rendezvous(rendezvous)
        .build(&stream)?;

    let partial = stream.clone_htod(&partial(rank))?;
    let mut rows = stream.alloc_zeros::<bf16>(ROWS * HIDDEN / WORLD_SIZE)?;
    communicator.reduce_scatter(&partial, &mut rows)?;
    // ... an engine normalises its rows here ...
    let mut hidden = stream.alloc_zeros::<bf16>(ROWS * HIDDEN)?;
    communicator.all_gather(&rows, &mut hidden)?;

    let part = stream.clone_htod(&logits(rank))?;
    let mut logits = stream.alloc_zeros::<bf16>(VOCABULARY)?;
    communicator.all_gather(&part, &mut logits)?;
    let mut token = stream.alloc_zeros::<u32>(1)?;
    if rank == 0 {
        communicator.synchronize()?;
        let drawn = [draw(&stream.clone_dtoh(&logits)?)];
        stream.memcpy_htod(&drawn, &mut token)?;
    }
    communicator.broadcast(&mut token, 0)?;
    communicator.synchronize()?;
    let token = stream.clone_dtoh(&token)?[0];
    Ok((
        stream.clone_dtoh(&hidden)?,
        stream.clone_dtoh(&logits)?,
        token,
    ))
}

fn main() -> anyhow::Result<()> {
    let partials: Vec<Vec<bf16>> = (0..WORLD_SIZE).map(partial).collect();
    let partials: Vec<&[bf16]> = partials.iter().map(Vec::as_slice).collect();
    let parts: Vec<Vec<bf16>> = (0..WORLD_SIZE).map(logits).collect();
    let parts: Vec<&[bf16]> = parts.iter().map(Vec::as_slice).collect();
    // The scattered rows are those of the sum, to the bit.
    let hidden = reference::all_reduce(&partials);
    let logits = reference::all_gather(&parts);
    let mut tokens = Vec::new();
    std::thread::scope(|scope| {
        let ranks: Vec<_> = Rendezvous::threads(WORLD_SIZE as u32)
            .into_iter()
            .map(|rendezvous| scope.spawn(move || run_rank(rendezvous)))
            .collect();
        for (rank, thread) in ranks.into_iter().enumerate() {
            let (found, all, token) = thread
                .join()
                .map_err(|_| anyhow::anyhow!("rank {rank} panicked"))??;
            anyhow::ensure!(found == hidden, "rank {rank}: the rows differ");
            anyhow::ensure!(all == logits, "rank {rank}: the logits differ");
            println!("rank {rank}: the reference's bits, and token {token}");
            tokens.push(token);
        }
        anyhow::ensure!(tokens.iter().all(|&it| it == tokens[0]), "{tokens:?}");
        Ok(())
    })
}
