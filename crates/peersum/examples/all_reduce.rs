//! README's program: one process a rank, each on the GPU of its local rank (or all on the only
//! one):
//!
//! ```sh
//! cargo build --example all_reduce
//! for r in 0 1; do
//!     PEERSUM_GROUP=loop-$$ RANK=$r WORLD_SIZE=2 CUDA_DEVICE_MAX_CONNECTIONS=32 \
//!         target/debug/examples/all_reduce &
//! done; wait
//! ```
//!
//! torchrun, mpirun and srun set what the loop sets. The kernels come from `$PEERSUM_CUBIN_DIR`,
//! else NVRTC compiles them once.

use peersum::{Communicator, Rendezvous};

fn main() -> anyhow::Result<()> {
    let ranks = Rendezvous::from_env()?; // reads RANK, WORLD_SIZE and LOCAL_RANK
    let stream = peersum::open_context(ranks.local_rank())?.new_stream()?;
    let mut communicator = Communicator::builder().rendezvous(ranks).build(&stream)?;
    let mut activations = stream.clone_htod(&vec![1.0_f32; 4096])?;
    communicator.all_reduce_in_place(&mut activations)?;
    communicator.synchronize()?; // the result is valid only if this succeeds
    println!("{:?}", &stream.clone_dtoh(&activations)?[..4]);
    Ok(())
}
