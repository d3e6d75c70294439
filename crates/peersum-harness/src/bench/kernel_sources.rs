//! `kernel-sources`: writes the sources of a build that only the harness runs, for `cargo xtask
//! precompile --kernels`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use peersum_kernels::HarnessBuild;

/// What is written where.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct SourcesArgs {
    /// `unsafe-baseline`, `strict-order` or `one-launch`.
    #[arg(value_parser = parse_build)]
    build: HarnessBuild,
    /// The directory, made if need be.
    directory: PathBuf,
}

fn parse_build(text: &str) -> Result<HarnessBuild, String> {
    HarnessBuild::ALL
        .into_iter()
        .find(|build| build.name() == text)
        .ok_or_else(|| {
            let names = HarnessBuild::ALL.map(HarnessBuild::name).join(", ");
            format!("`{text}` is none of {names}")
        })
}

/// Writes every file.
///
/// # Errors
/// The directory cannot be made or written.
pub(crate) fn run(args: &SourcesArgs) -> Result<()> {
    std::fs::create_dir_all(&args.directory)
        .with_context(|| format!("making {}", args.directory.display()))?;
    for (name, text) in args.build.sources() {
        let path = args.directory.join(name);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
