//! Calls captured into a CUDA graph and replayed, one process a rank:
//!
//! ```sh
//! cargo build --example graph
//! for r in 0 1; do
//!     PEERSUM_GROUP=loop-$$ RANK=$r WORLD_SIZE=2 CUDA_DEVICE_MAX_CONNECTIONS=32 \
//!         target/debug/examples/graph &
//! done; wait
//! ```

use half::bf16;
use peersum::{Communicator, Held, Rendezvous};

fn main() -> anyhow::Result<()> {
    let rendezvous = Rendezvous::from_env()?;
    let context = peersum::open_context(rendezvous.local_rank())?;
    // SAFETY: everything here is used on one stream, so no event need order it.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream()?;
    let mut communicator = Communicator::builder()
        .rendezvous(rendezvous)
        .build(&stream)?;

    let mut attention = stream.clone_htod(&vec![bf16::ONE; 4096])?;
    let mut mlp = stream.clone_htod(&vec![bf16::ONE; 4096])?;
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
    let sum = stream.clone_dtoh(&*mlp)?[0];
    assert_eq!(sum.to_f32(), communicator.world_size().pow(3) as f32);
    println!("rank {}: three replays, {sum}", communicator.rank());
    Ok(())
}
