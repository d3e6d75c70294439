//! peersum's harness: everything that runs ranks. `cargo xtask` builds and starts it.

mod above_range;
mod arrays;
mod bench;
mod data;
mod doctor;
mod faults;
mod grid;
mod kill;
mod machine;
mod memory;
mod names;
mod ranks;
mod sanitize;
mod soak;
mod tune;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    about = "Runs ranks of peersum: proofs, test grids, benchmarks",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Microseconds a call, against the machine's limits and NCCL.
    BenchAllreduce(Box<bench::allreduce::BenchArgs>),
    /// Microseconds a row-parallel layer without an all-reduce, with peersum's and with NCCL's:
    /// what an engine sees.
    ///
    /// Each rank multiplies its shard, [rows, hidden/W] x [hidden/W, hidden] in bf16 by cuBLAS, and
    /// the partial products are summed in place; the next layer takes its input from the sum. All
    /// layers are one CUDA graph, or are launched one after the other. The same layers are timed
    /// without an all-reduce in turn with those that have one, so `adds` is the difference of two
    /// medians of one run.
    ///
    /// cuBLAS is loaded at run time: LD_LIBRARY_PATH must name the directory of libcublas.so.13 or
    /// .12, unless the loader knows it.
    BenchLayer(Box<bench::layer::LayerArgs>),
    /// Measures which algorithm and grid is the fastest, and writes the dispatch tables.
    Tune(tune::TuneArgs),
    /// The sources of a build of the kernels that only this program runs.
    #[command(hide = true)]
    KernelSources(bench::kernel_sources::SourcesArgs),
    /// What ranks of one process are told when a peer is absent, aborted or calls something else.
    Faults(faults::FaultsArgs),
    /// Calls that go to NCCL itself, in order with peersum's kernels: one GPU a rank.
    AboveRange(above_range::AboveRangeArgs),
    /// One rank of `above-range`.
    #[command(hide = true)]
    AboveRangeRank(above_range::RankArgs),
    /// The test grid: every configuration, bits against the reference.
    Grid(grid::GridArgs),
    /// Random calls for as long as asked, the bits of every result compared.
    Soak(soak::SoakArgs),
    /// Real ranks, one of which is killed or stopped, at each phase of its life.
    Kill(kill::KillArgs),
    /// One rank of `kill`.
    #[command(hide = true)]
    KillRank(kill::RankArgs),
    /// What of this machine works with peersum, what is slower and why, and what does not work and
    /// what to do.
    Doctor(doctor::DoctorArgs),
    /// The other process of `doctor`.
    #[command(hide = true)]
    DoctorPeer(doctor::PeerArgs),
    /// A reduced grid under compute-sanitizer, and for each of its tools an error that it must
    /// find.
    Sanitize(sanitize::SanitizeArgs),
    /// Every kind of call by ranks that are the rows of one grid.
    #[command(hide = true)]
    SanitizeGroup(sanitize::GroupArgs),
    /// One planted error.
    #[command(hide = true)]
    SanitizePlanted(sanitize::PlantedArgs),
    /// What `grid --device` comes to on this machine.
    #[command(hide = true)]
    Device(machine::DeviceArgs),
    /// One rank of `grid --ranks processes`.
    #[command(hide = true)]
    Rank(grid::RankArgs),
    /// The grid on protocols that are broken on purpose, each of which it must see.
    #[cfg(feature = "negative-controls")]
    NegativeControls,
}

fn main() -> Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    match Cli::parse().command {
        Command::BenchAllreduce(args) => bench::allreduce::run(&args)?,
        Command::BenchLayer(args) => bench::layer::run(&args)?,
        Command::Tune(args) => tune::run(&args)?,
        Command::KernelSources(args) => bench::kernel_sources::run(&args)?,
        Command::Grid(args) => return grid::run(&args),
        Command::Kill(args) => return kill::run(&args),
        Command::KillRank(args) => kill::run_rank(&args)?,
        Command::Doctor(args) => return doctor::run(&args),
        Command::DoctorPeer(args) => doctor::run_peer(&args)?,
        Command::Sanitize(args) => return sanitize::run(&args),
        Command::SanitizeGroup(args) => sanitize::run_group(&args)?,
        Command::SanitizePlanted(args) => sanitize::run_planted(&args)?,
        Command::Soak(args) => return soak::run(&args),
        Command::Device(args) => machine::print_device(&args)?,
        Command::Rank(args) => grid::run_process(&args)?,
        #[cfg(feature = "negative-controls")]
        Command::NegativeControls => return grid::negative_controls::run(),
        Command::Faults(args) => faults::run(&args)?,
        Command::AboveRange(args) => above_range::run(&args)?,
        Command::AboveRangeRank(args) => above_range::run_rank(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}
