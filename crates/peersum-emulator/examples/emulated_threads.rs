//! Ranks as threads of one process, without a GPU: `cargo run -p peersum-emulator --example
//! emulated_threads`

use peersum::{Communicator, Rendezvous};
use peersum_emulator::{EmulatorBuffer, EmulatorDevice};

const WORLD_SIZE: u32 = 4;

fn run_rank(rendezvous: Rendezvous) -> anyhow::Result<()> {
    let rank = rendezvous.rank();
    let stream = EmulatorDevice::new(rank).stream()?;
    let mut communicator = Communicator::builder()
        .rendezvous(rendezvous)
        .max_bytes(1 << 20)
        .build(&stream)?;
    let input = EmulatorBuffer::from_slice(&[1.0f32 + rank as f32; 1000]);
    let mut output = EmulatorBuffer::<f32>::zeroed(1000);
    communicator.all_reduce(&input, &mut output)?;
    communicator.synchronize()?;
    println!("rank {rank}: {}", output.to_vec()[0]);
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
