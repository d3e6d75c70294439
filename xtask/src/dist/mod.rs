//! `cargo xtask dist`: makes the files of a release, and proves that a program can be built from
//! them alone.
//!
//! The compression crates take long to build, so they are behind the feature `dist` of this crate.
//! Without it, the command builds xtask with it and runs that.

#[cfg(feature = "dist")]
mod archive;
#[cfg(feature = "dist")]
mod consumer;
#[cfg(feature = "dist")]
mod notes;
#[cfg(feature = "dist")]
mod release;
#[cfg(feature = "dist")]
mod scratch;
#[cfg(feature = "dist")]
mod stage;
#[cfg(feature = "dist")]
mod sums;
#[cfg(feature = "dist")]
mod unpacked;
#[cfg(feature = "dist")]
mod verify;

use crate::precompile::ArchChoice;
use clap::Args;
use std::path::PathBuf;

/// Make the files of a release, or check them
///
/// Precompiles the release set with the pinned compiler and writes an archive of the cubins, the
/// .crate files of every publishable crate (peersum-kernels with the cubins in it), release notes
/// and SHA256SUMS. The same checkout and the same cargo give the same bytes. The output is replaced
/// as a whole, so it is complete at any moment.
#[derive(Debug, Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct DistArgs {
    /// Where the files go; the directory's contents are replaced [default: target/dist]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// What to compile for, as for precompile [default: sm_80,sm_90,sm_100,sm_120,compute_80]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    arch: Vec<ArchChoice>,

    /// Package the modules of this directory instead of compiling
    #[arg(long, value_name = "DIR", conflicts_with = "arch", hide = true)]
    cubins: Option<PathBuf>,

    /// Make nothing; check the sums of DIR, build a program from its .crate files alone, offline,
    /// and run it
    #[arg(long, value_name = "DIR", conflicts_with_all = ["out", "arch", "cubins"])]
    verify: Option<PathBuf>,
}

const AFTER_HELP: &str = "\
The files:
  peersum-cubins-{version}-cuda{major}.tar.zst   for PEERSUM_CUBIN_DIR: cubins, PTX, manifest.json
                                                 and licences
  {crate}-{version}.crate                        for crates.io; peersum-kernels has the cubins in it
  RELEASE-NOTES.md                               the version's section of CHANGELOG.md
  SHA256SUMS                                     of all of these, for `sha256sum --check`

What --verify does:
  1. Checks that no file is missing, none is extra, and each has its sum.
  2. Unpacks the archive, verifies each module, and checks that peersum-kernels carries the same.
  3. Builds a program that depends on peersum: offline, from the .crate files and vendored sources
     of the other dependencies, with an empty cargo home and a PATH without nvcc.
  4. Runs it: it loads every module of the release from its own executable with PEERSUM_JIT=deny,
     and runs all-reduces on the emulator and on the GPUs, if there are any.

Examples:
  cargo xtask dist                                       the release, into target/dist
  cargo xtask dist --arch sm_90 --out target/h100        a package for one kind of machine
  cargo xtask dist --verify target/dist

Exit status: 0 if all is well, else 1; an earlier output is then untouched.";

/// Runs the command.
///
/// # Errors
/// Something is missing, does not compile, or is not what it should be.
#[cfg(feature = "dist")]
pub(crate) fn run(args: &DistArgs) -> anyhow::Result<()> {
    match &args.verify {
        Some(directory) => verify::run(directory),
        None => release::run(args.out.as_deref(), &args.arch, args.cubins.as_deref()),
    }
}

/// Builds xtask with the compression crates and runs the command with that.
///
/// # Errors
/// Cargo cannot be started.
#[cfg(not(feature = "dist"))]
pub(crate) fn run(_args: &DistArgs) -> anyhow::Result<()> {
    crate::cargo::run_again_with_feature("dist")
}
