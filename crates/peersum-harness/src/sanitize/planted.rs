//! The errors that compute-sanitizer must find: kernels of `planted.ptx`, each in a process of its
//! own.

use anyhow::{Context, Result};
use peersum::cudarc::driver::{LaunchConfig, PushKernelArg, result};
use peersum::cudarc::nvrtc::Ptx;

use super::tool::Tool;

/// Elements of the array that the kernels are given.
const ELEMENTS: u64 = 1024;

/// The flags of `sanitize-planted`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PlantedArgs {
    /// The tool that must find the error.
    #[arg(long, value_enum)]
    tool: Tool,
}

/// Makes one error on GPU 0. Later errors in this process do not matter: the tool may destroy the
/// context.
pub(crate) fn run(args: &PlantedArgs) -> Result<()> {
    let context = peersum::open_context(0)?;
    let module = context
        .load_module(Ptx::from_src(include_str!("planted.ptx")))
        .context("loading planted.ptx")?;
    let kernel = module.load_function(args.tool.planted_kernel())?;
    let stream = context.default_stream();
    // SAFETY: the allocation is freed once, below, after the last launch that uses it.
    let array = unsafe { result::malloc_sync(ELEMENTS as usize * size_of::<u32>())? };
    let mut launch = stream.launch_builder(&kernel);
    launch.arg(&array).arg(&ELEMENTS);
    let one_block = LaunchConfig {
        grid_dim: (1, 1, 1),
        block_dim: (64, 1, 1),
        shared_mem_bytes: 0,
    };
    // SAFETY: the arguments are those of the kernels. Three of them stay within the array. The
    // store of one element behind it stays within the 2 MiB that the driver allocates at least,
    // which nothing else lies in.
    let outcome = unsafe { launch.launch(one_block) }.and_then(|_| stream.synchronize());
    println!("{}: {outcome:?}", args.tool.planted_kernel());
    // SAFETY: the address came from `malloc_sync`, and nothing runs any more.
    let _ = unsafe { result::free_sync(array) };
    Ok(())
}
