//! Ranks as threads of one process, each on a GPU of its own or all on the only one:
//!
//! ```sh
//! CUDA_DEVICE_MAX_CONNECTIONS=32 cargo run --example threads
//! ```

use peersum::{Communicator, Rendezvous};

const WORLD_SIZE: u32 = 2;

fn run_rank(rendezvous: Rendezvous) -> anyhow::Result<()> {
    let rank = rendezvous.rank();
    let stream = peersum::open_context(rank)?.new_stream()?;
    let mut communicator = Communicator::builder()
        .rendezvous(rendezvous)
        .build(&stream)?;
    let input = stream.clone_htod(&vec![1.0f32 + rank as f32; 1000])?;
    let mut output = stream.alloc_zeros::<f32>(1000)?;
    communicator.all_reduce(&input, &mut output)?;
    communicator.synchronize()?;
    println!("rank {rank}: {}", stream.clone_dtoh(&output)?[0]);
    Ok(())
}

fn main() -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let ranks: Vec<_> = Rendezvous::threads(WORLD_SIZE)
            .into_iter()
            .map(|rendezvous| scope.spawn(move || run_rank(rendezvous)))
            .collect();
        ranks.into_iter().try_for_each(|rank| match rank.join() {
            Ok(outcome) => outcome,
            Err(_) => anyhow::bail!("a rank panicked"),
        })
    })
}
