//! An engine's code against `cudarc::nccl`, with one `use` changed. Ranks are threads of one
//! process, each on a GPU of its own or both on the only one:
//!
//! ```sh
//! CUDA_DEVICE_MAX_CONNECTIONS=32 cargo run --example nccl_shape
//! ```

use anyhow::Context;
use peersum::cudarc::driver::CudaContext;

/// `engine.rs` does not say whose types these are; a test compiles it with those of `cudarc::nccl`
/// as well.
mod engine {
    use peersum::cudarc::driver::{CudaSlice as Buffer, CudaStream};
    use peersum::nccl_shape::{Comm, Id, NcclType, ReduceOp, result::NcclError};

    type Stream = std::sync::Arc<CudaStream>;

    include!("engine.rs");
}

const WORLD_SIZE: usize = 2;
const ELEMENTS: usize = 8192;
const TOKENS: usize = 5;

fn run_rank(rank: usize, id: &str) -> anyhow::Result<()> {
    let id = engine::decode(id).context("not an id")?;
    let context = peersum::open_context(rank as u32)?;
    // With a GPU a rank the default stream works too; see the documentation of `nccl_shape`.
    let stream = if CudaContext::device_count()? == 1 {
        context.new_stream()?
    } else {
        context.per_thread_stream()
    };
    let engine = engine::TensorParallel::new(stream.clone(), rank, WORLD_SIZE, id)?;
    let partial = stream.clone_htod(&vec![1.0_f32 + rank as f32; ELEMENTS])?;
    let sum = stream.clone_dtoh(&engine.reduce(&partial)?)?;
    anyhow::ensure!(sum.iter().all(|&element| element == 3.0), "{:?}", &sum[..4]);
    // In parts of an odd length, most of which begin between units of 16 bytes.
    let mut parts = stream.clone_dtod(&partial)?;
    engine.sum_in_place(&mut parts, 1001)?;
    anyhow::ensure!(stream.clone_dtoh(&parts)? == sum, "the parts differ");
    let rows = engine.scatter(&partial)?;
    let rows = stream.clone_dtoh(&engine.gather(&rows)?)?;
    anyhow::ensure!(rows == sum, "the gathered rows differ");
    let sampled = stream.clone_htod(&[7 + rank as u32])?;
    let mut tokens = stream.alloc_zeros::<u32>(TOKENS)?;
    engine.put_token(&sampled, &mut tokens, TOKENS - 1)?;
    anyhow::ensure!(
        stream.clone_dtoh(&tokens)? == [0, 0, 0, 0, 7],
        "another token"
    );
    let mut weights = partial;
    engine.share(&mut weights, 1)?;
    let weights = stream.clone_dtoh(&weights)?;
    anyhow::ensure!(weights.iter().all(|&weight| weight == 2.0), "other weights");
    println!("{engine:?}: {}", sum[0]);
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let id = &engine::new_id()?;
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..WORLD_SIZE)
            .map(|rank| scope.spawn(move || run_rank(rank, id)))
            .collect();
        ranks.into_iter().try_for_each(|rank| match rank.join() {
            Ok(outcome) => outcome,
            Err(_) => anyhow::bail!("a rank panicked"),
        })
    })
}
