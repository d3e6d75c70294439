//! The harness of peersum: all commands that run ranks. `cargo xtask` builds and starts it.

mod above_range;
mod bench;
mod call;
mod calls;
mod collective;
mod data;
mod doctor;
mod faults;
mod grid;
mod kill;
mod machine;
mod memory;
mod names;
mod norm_output;
mod operation;
mod ranks;
mod sanitize;
mod soak;
mod table;
mod tune;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    about = "Tests, benchmarks and tunes peersum: every command that runs ranks",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure microseconds per call, against the limits of the machine and NCCL.
    BenchAllreduce(Box<bench::allreduce::BenchArgs>),
    /// Measure a decode step of a Llama, with NCCL, with peersum unfused and with peersum fused.
    ///
    /// Prints microseconds a step and tokens a second: with NCCL and a kernel that normalises, with
    /// peersum's all-reduce and the same kernel, and with peersum's fused kernel; and the
    /// microseconds of the products alone.
    ///
    /// cuBLAS is loaded at run time: LD_LIBRARY_PATH must name the directory of libcublas.so.13 or
    /// .12, unless the loader knows it.
    BenchLayer(bench::layer::LayerArgs),
    /// Find the fastest algorithm and grid for each message size, and write dispatch tables.
    ///
    /// A size stands for messages from half to twice its size. Between two sizes at most four times
    /// apart that take the same push, the larger one stands for all. 16M also stands for all larger
    /// messages, and sizes up to 4K for all smaller ones.
    Tune(tune::TuneArgs),
    /// Write the sources of a build of the kernels that only this program runs.
    #[command(hide = true)]
    KernelSources(bench::kernel_sources::SourcesArgs),
    /// Test the errors of ranks whose peer is absent, aborts or makes a different call.
    Faults(faults::FaultsArgs),
    /// Test calls that go to NCCL, in order with peersum's kernels: one GPU per rank.
    AboveRange(above_range::AboveRangeArgs),
    /// One rank of `above-range`.
    #[command(hide = true)]
    AboveRangeRank(ranks::RankArgs),
    /// Test every configuration and compare the results with the reference, bit for bit.
    Grid(grid::GridArgs),
    /// Make random calls for a given time and compare the bits of every result.
    Soak(soak::SoakArgs),
    /// Kill or stop a rank in each phase of its life, and test what the others are told.
    Kill(kill::KillArgs),
    /// One rank of `kill`.
    #[command(hide = true)]
    KillRank(ranks::RankArgs),
    /// Diagnose this machine: what works, what is slow, and how to fix it.
    Doctor(doctor::DoctorArgs),
    /// The other process of `doctor`.
    #[command(hide = true)]
    DoctorPeer(ranks::RankArgs),
    /// Run reduced grids under compute-sanitizer, and test that each tool finds a planted error.
    Sanitize(sanitize::SanitizeArgs),
    /// Every kind of call, by ranks that are the rows of one CUDA grid.
    #[command(hide = true)]
    SanitizeGroup(sanitize::GroupArgs),
    /// One planted error.
    #[command(hide = true)]
    SanitizePlanted(sanitize::PlantedArgs),
    /// Print the device that `grid --device` selects on this machine.
    #[command(hide = true)]
    Device(machine::DeviceArgs),
    /// One rank of `grid --ranks processes`.
    #[command(hide = true)]
    Rank(ranks::RankArgs),
    /// Run the grid on protocols that are broken on purpose, each of which it must find.
    #[cfg(feature = "negative-controls")]
    NegativeControls,
}

fn main() -> Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => {
            let _ = error.print();
            // As every other failure.
            return Ok(exit_code(!error.use_stderr()));
        }
    };
    let done = |()| true;
    let passed = match command {
        Command::BenchAllreduce(args) => bench::allreduce::run(&args).map(done),
        Command::BenchLayer(args) => bench::layer::run(&args).map(done),
        Command::Tune(args) => tune::run(&args).map(done),
        Command::KernelSources(args) => bench::kernel_sources::run(&args).map(done),
        Command::Grid(args) => grid::run(&args),
        Command::Kill(args) => kill::run(&args),
        Command::KillRank(args) => kill::run_rank(&args).map(done),
        Command::Doctor(args) => doctor::run(&args),
        Command::DoctorPeer(args) => doctor::run_peer(&args).map(done),
        Command::Sanitize(args) => sanitize::run(&args),
        Command::SanitizeGroup(args) => sanitize::run_group(&args).map(done),
        Command::SanitizePlanted(args) => sanitize::run_planted(&args).map(done),
        Command::Soak(args) => soak::run(&args),
        Command::Device(args) => machine::print_device(&args).map(done),
        Command::Rank(args) => grid::run_process(&args).map(done),
        #[cfg(feature = "negative-controls")]
        Command::NegativeControls => grid::negative_controls::run(),
        Command::Faults(args) => faults::run(&args).map(done),
        Command::AboveRange(args) => above_range::run(&args).map(done),
        Command::AboveRangeRank(args) => above_range::run_rank(&args).map(done),
    }?;
    Ok(exit_code(passed))
}

fn exit_code(passed: bool) -> ExitCode {
    match passed {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
