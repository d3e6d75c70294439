//! The project's own commands, run as `cargo xtask <command>`.
//!
//! This file holds the flags and the dispatch; each command is a module. Dependencies are few on purpose: a fresh clone
//! builds this crate before it can do anything else.

mod bench_harness;
mod bench_precompile;
mod bindings;
mod cargo;
mod cargo_steps;
mod deny;
mod dist;
mod harness;
mod harness_kernels;
mod precompile;
mod test_allreduce;
mod toolchain;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// The project's own commands.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Precompile(precompile::PrecompileArgs),
    Bench {
        #[command(subcommand)]
        bench: Bench,
    },
    Toolchain(toolchain::ToolchainArgs),
    Bindings(bindings::BindingsArgs),
    Test(cargo_steps::TestArgs),
    TestAllreduce(test_allreduce::TestAllreduceArgs),
    /// Measure which algorithm and grid is the fastest on this machine, and write the dispatch table
    #[command(disable_help_flag = true)]
    Tune(bench_harness::HarnessBenchArgs),
    /// Say what of this machine works with peersum, what is slower and why, and what does not work and what to do
    #[command(disable_help_flag = true)]
    Doctor(bench_harness::HarnessBenchArgs),
    Dist(dist::DistArgs),
    Deny(deny::DenyArgs),
    Ci(cargo_steps::CiArgs),
}

/// Measurements of the project's own performance promises.
#[derive(Debug, Subcommand)]
enum Bench {
    Precompile(bench_precompile::BenchPrecompileArgs),
    /// Time the first use of a module from a directory, the pack, NVRTC and the JIT cache
    #[command(disable_help_flag = true)]
    Load(bench_harness::HarnessBenchArgs),
    /// Time the host's part of an eager call against a bare launch of the same kernel
    #[command(disable_help_flag = true)]
    Call(bench_harness::HarnessBenchArgs),
    /// Time the all-reduce in replayed graphs, by size, world size and algorithm
    #[command(disable_help_flag = true)]
    Allreduce(bench_harness::HarnessBenchArgs),
    /// Time a row-parallel layer in a graph of many: without an all-reduce, with peersum's and with NCCL's
    #[command(disable_help_flag = true)]
    Layer(bench_harness::HarnessBenchArgs),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Precompile(args) => precompile::run(&args),
        Command::Toolchain(args) => toolchain::run(&args),
        Command::Bindings(args) => bindings::run(&args),
        Command::Bench { bench } => match bench {
            Bench::Precompile(args) => bench_precompile::run(&args),
            Bench::Load(args) => bench_harness::run(bench_harness::Bench::Load, &args),
            Bench::Call(args) => bench_harness::run(bench_harness::Bench::Call, &args),
            Bench::Allreduce(args) => bench_harness::run(bench_harness::Bench::Allreduce, &args),
            Bench::Layer(args) => bench_harness::run(bench_harness::Bench::Layer, &args),
        },
        Command::Test(args) => cargo_steps::test(&args),
        Command::TestAllreduce(args) => test_allreduce::run(&args),
        Command::Tune(args) => bench_harness::run(bench_harness::Bench::Tune, &args),
        Command::Doctor(args) => bench_harness::run(bench_harness::Bench::Doctor, &args),
        Command::Dist(args) => dist::run(&args),
        Command::Deny(args) => deny::run(&args),
        Command::Ci(args) => cargo_steps::ci(&args),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
