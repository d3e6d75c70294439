//! The project's own commands, run as `cargo xtask <command>`.
//!
//! This file dispatches; each command is a module. Dependencies are few on purpose: a fresh clone
//! builds this crate before it can do anything else.

mod bench_precompile;
mod bindings;
mod cargo;
mod cargo_steps;
mod dist;
mod harness;
mod output;
mod precompile;
mod test_programs;
mod toolchain;
mod workers;
mod workspace;

use clap::{Parser, Subcommand};
use harness::{HarnessArgs, HarnessCommand};
use std::ffi::OsString;
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
    Precompile(Box<precompile::Request>),
    Bench {
        #[command(subcommand)]
        bench: Bench,
    },
    Toolchain(toolchain::ToolchainArgs),
    Bindings(bindings::BindingsArgs),
    Test(cargo_steps::TestArgs),
    /// Test every configuration of every operation on this machine's GPUs, else on the emulator
    #[command(disable_help_flag = true)]
    TestAllreduce(HarnessArgs),
    /// Find the fastest algorithm and grid for each size, and write this machine's dispatch table
    #[command(disable_help_flag = true)]
    Tune(HarnessArgs),
    /// Diagnose this machine: what works, what is slow, and how to fix it
    #[command(disable_help_flag = true)]
    Doctor(HarnessArgs),
    Dist(dist::DistArgs),
    /// Run everything that a change must pass
    ///
    /// Format, lints, the bindings of abi.h, the whole kernel matrix with the pinned compiler, the
    /// bf16 modules for sm_90 with nvcc's stock headers (the bytes must agree), the tests, and a
    /// release with a program built from it alone.
    Ci,
}

/// Measure the performance that the project promises
#[derive(Debug, Subcommand)]
enum Bench {
    Precompile(bench_precompile::BenchPrecompileArgs),
    /// Time calls by operation, size, world size and algorithm, against NCCL and the machine's
    /// limits
    #[command(disable_help_flag = true)]
    Allreduce(HarnessArgs),
    /// Time a decode step of a Llama, with NCCL and with peersum unfused and fused
    #[command(disable_help_flag = true)]
    Layer(HarnessArgs),
}

fn main() -> ExitCode {
    let command = match Cli::try_parse_from(arguments(std::env::args_os())) {
        Ok(cli) => cli.command,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    let outcome = match command {
        Command::Precompile(request) => precompile::run(&request),
        Command::Toolchain(args) => toolchain::run(&args),
        Command::Bindings(args) => bindings::run(&args),
        Command::Bench { bench } => match bench {
            Bench::Precompile(args) => bench_precompile::run(&args),
            Bench::Allreduce(args) => HarnessCommand::BenchAllreduce.run(&args),
            Bench::Layer(args) => HarnessCommand::BenchLayer.run(&args),
        },
        Command::Test(args) => cargo_steps::test(&args),
        Command::TestAllreduce(args) => HarnessCommand::TestAllreduce.run(&args),
        Command::Tune(args) => HarnessCommand::Tune.run(&args),
        Command::Doctor(args) => HarnessCommand::Doctor.run(&args),
        Command::Dist(args) => dist::run(&args),
        Command::Ci => cargo_steps::ci(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The command line for clap, which drops the `--` of `cargo xtask test -- --nocapture` unless
/// there is another one.
fn arguments(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = given.collect();
    if let [_, command, dashes, ..] = &arguments[..]
        && command == "test"
        && dashes == "--"
    {
        arguments.insert(2, "--".into());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_to_cargo_test_arrives_as_it_was_given() {
        for given in [
            &["--", "--nocapture"][..],
            &["-p", "peersum", "--", "--nocapture"],
            &["-p", "peersum"],
            &[],
        ] {
            let words = ["xtask", "test"].iter().chain(given);
            let parsed = Cli::try_parse_from(arguments(words.map(OsString::from))).unwrap();
            let Command::Test(test) = parsed.command else {
                panic!("another command");
            };
            assert_eq!(test.cargo_test_args, given);
        }
    }
}
