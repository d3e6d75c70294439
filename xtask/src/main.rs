//! The project's own commands, run as `cargo xtask <command>`.
//!
//! This file holds the flags and the dispatch; each command is a module. Dependencies are few on purpose: a fresh clone
//! builds this crate before it can do anything else.

mod bench_precompile;
mod bindings;
mod cargo_steps;
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
    Ci(cargo_steps::CiArgs),
}

/// Measurements of the project's own performance promises.
#[derive(Debug, Subcommand)]
enum Bench {
    Precompile(bench_precompile::BenchPrecompileArgs),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Precompile(args) => precompile::run(&args),
        Command::Toolchain(args) => toolchain::run(&args),
        Command::Bindings(args) => bindings::run(&args),
        Command::Bench {
            bench: Bench::Precompile(args),
        } => bench_precompile::run(&args),
        Command::Test(args) => cargo_steps::test(&args),
        Command::TestAllreduce(args) => test_allreduce::run(&args),
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
