//! One process a rank, without a GPU:
//!
//! ```sh
//! cargo build -p peersum-emulator --example emulated_all_reduce
//! for r in 0 1; do
//!     PEERSUM_GROUP=loop-$$ RANK=$r WORLD_SIZE=2 target/debug/examples/emulated_all_reduce &
//! done; wait
//! ```

use half::bf16;
use peersum::{Communicator, Rendezvous};
use peersum_emulator::{EmulatorBuffer, EmulatorDevice};

fn main() -> anyhow::Result<()> {
    let rendezvous = Rendezvous::from_env()?;
    let stream = EmulatorDevice::new(rendezvous.local_rank()).stream()?;
    let mut communicator = Communicator::builder()
        .rendezvous(rendezvous)
        .max_bytes(1 << 20)
        .build(&stream)?;

    let (rank, world_size) = (communicator.rank(), communicator.world_size());
    let mut hidden = EmulatorBuffer::from_slice(&[bf16::from_f32(rank as f32 + 1.0); 8192]);
    communicator.all_reduce_in_place(&mut hidden)?;
    // Launched is not done: this is what says that the sum is there.
    communicator.synchronize()?;

    let sum = hidden.to_vec();
    assert_eq!(sum[0].to_f32(), (world_size * (world_size + 1) / 2) as f32);
    println!("rank {rank} of {world_size}: every element is {}", sum[0]);
    Ok(())
}
