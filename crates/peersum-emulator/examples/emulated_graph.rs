//! Calls captured into a graph and replayed, one process a rank, without a GPU:
//!
//! ```sh
//! cargo build -p peersum-emulator --example emulated_graph
//! for r in 0 1; do
//!     PEERSUM_GROUP=loop-$$ RANK=$r WORLD_SIZE=2 target/debug/examples/emulated_graph &
//! done; wait
//! ```

use half::bf16;
use peersum::{Communicator, Held, Rendezvous};
use peersum_emulator::{EmulatorBuffer, EmulatorDevice};

fn main() -> anyhow::Result<()> {
    let rendezvous = Rendezvous::from_env()?;
    let stream = EmulatorDevice::new(rendezvous.local_rank()).stream()?;
    let mut communicator = Communicator::builder()
        .rendezvous(rendezvous)
        .max_bytes(1 << 20)
        .build(&stream)?;

    let mut attention = EmulatorBuffer::from_slice(&[bf16::ONE; 4096]);
    let mut mlp = EmulatorBuffer::from_slice(&[bf16::ONE; 4096]);
    // The graph borrows its buffers for as long as it lives; `Held` lends them and lets the program
    // use them meanwhile.
    let (mut attention, mut mlp) = (Held::new(&mut attention), Held::new(&mut mlp));
    let layer = communicator.capture(|capture| {
        capture.all_reduce_in_place(&mut attention)?;
        capture.all_reduce_in_place(&mut mlp)
    })?;
    for _ in 0..3 {
        layer.launch(&mut communicator)?;
    }
    communicator.synchronize()?;
    let sum = mlp.to_vec()[0];
    assert_eq!(sum.to_f32(), communicator.world_size().pow(3) as f32);
    println!("rank {}: three replays, {sum}", communicator.rank());
    Ok(())
}
