//! The commands that run ranks. xtask builds the harness, compiles what its command will load, and
//! becomes the harness. The harness defines, checks and documents all flags but xtask's own.

mod build;
mod flags;
mod kernels;
mod prepare;

use crate::cargo::captured;
use crate::workspace;
use anyhow::Context as _;
use clap::Args;
use flags::Flags;
use peersum_artifact::MANIFEST_FILE;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The flags of the harness's command.
#[derive(Debug, Args)]
pub(crate) struct HarnessArgs {
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "FLAGS"
    )]
    flags: Vec<String>,
}

/// A command of the harness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HarnessCommand {
    TestAllreduce,
    BenchAllreduce,
    BenchLayer,
    Tune,
    Doctor,
}

/// What `--help` prints after the harness's own help.
const XTASK_FLAGS: &str = "
Flags of cargo xtask, which compiles the kernels first:
      --compile-for <LIST>      Compile for these architectures, such as sm_90, for a machine that
                                has no compiler. Run nothing; print the directory of the files, or
                                the harness's flags with it
      --toolkit <pinned|PATH>   The CUDA toolkit, as for precompile";

impl HarnessCommand {
    /// Its name on the harness's command line.
    fn name(self) -> &'static str {
        match self {
            Self::TestAllreduce => "grid",
            Self::BenchAllreduce => "bench-allreduce",
            Self::BenchLayer => "bench-layer",
            Self::Tune => "tune",
            Self::Doctor => "doctor",
        }
    }

    /// Runs the command. Returns only if the harness was not started.
    ///
    /// # Errors
    /// The harness or the kernels cannot be built.
    pub(crate) fn run(self, args: &HarnessArgs) -> anyhow::Result<()> {
        let harness = build::release_binary()?;
        let mut process = Command::new(&harness);
        process.arg(self.name());
        let mut flags = Flags(args.flags.clone());
        if flags.has("--help") || flags.has("-h") {
            print!(
                "{}",
                String::from_utf8_lossy(&captured(process.args(&flags.0))?)
            );
            if self != Self::Doctor {
                println!("{XTASK_FLAGS}");
            }
            return Ok(());
        }
        let runs_here = match self {
            Self::Doctor => {
                // It reports what is there, and must work where nothing can be compiled.
                let named = std::env::var_os("PEERSUM_CUBIN_DIR").is_some();
                let cubins = workspace::cubins();
                if !named && !flags.has("--cubins") && cubins.join(MANIFEST_FILE).is_file() {
                    flags.set("--cubins", &cubins);
                }
                true
            }
            Self::TestAllreduce => prepare::grid(&harness, &mut flags, &mut process)?,
            Self::BenchAllreduce => prepare::bench(&harness, &mut flags, true)?,
            Self::BenchLayer | Self::Tune => prepare::bench(&harness, &mut flags, false)?,
        };
        if !runs_here {
            return Ok(());
        }
        // Ranks that share a GPU need a hardware queue each.
        if self != Self::Doctor && std::env::var_os("CUDA_DEVICE_MAX_CONNECTIONS").is_none() {
            process.env("CUDA_DEVICE_MAX_CONNECTIONS", "32");
        }
        process.args(&flags.0);
        // In this process's place, so that signals and the exit status are the harness's own.
        Err(process.exec()).with_context(|| format!("cannot start {process:?}"))
    }
}
