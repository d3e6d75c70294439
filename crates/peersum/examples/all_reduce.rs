//! One process a rank, each on the GPU of its local rank (or all on one, if there are fewer):
//!
//! ```sh
//! cargo build --example all_reduce
//! for r in 0 1; do
//!     PEERSUM_GROUP=loop-$$ RANK=$r WORLD_SIZE=2 CUDA_DEVICE_MAX_CONNECTIONS=32 \
//!         target/debug/examples/all_reduce &
//! done; wait
//! ```
//!
//! torchrun, mpirun and srun set what the loop sets. The kernels come from `$PEERSUM_CUBIN_DIR`, else NVRTC compiles them once.

use half::bf16;
use peersum::cudarc::driver::CudaContext;
use peersum::{Communicator, Rendezvous};

fn main() -> anyhow::Result<()> {
    peersum::cuda::driver_present()?;
    let rendezvous = Rendezvous::from_env()?;
    let devices = CudaContext::device_count()?.max(1) as u32;
    let context = CudaContext::new((rendezvous.local_rank() % devices) as usize)?;
    let stream = context.new_stream()?;
    let mut communicator = Communicator::builder()
        .rendezvous(rendezvous)
        .build(&stream)?;

    let (rank, world_size) = (communicator.rank(), communicator.world_size());
    let mut hidden = stream.clone_htod(&vec![bf16::from_f32(rank as f32 + 1.0); 8192])?;
    communicator.all_reduce_in_place(&mut hidden)?;
    // Launched is not done: this is what says that the sum is there.
    communicator.synchronize()?;

    let sum = stream.clone_dtoh(&hidden)?;
    assert_eq!(sum[0].to_f32(), (world_size * (world_size + 1) / 2) as f32);
    println!("rank {rank} of {world_size}: every element is {}", sum[0]);
    Ok(())
}
