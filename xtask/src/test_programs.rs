//! The workspace's test programs: built by cargo, run several at a time. Many of them wait on real
//! time, for a rank that never comes or a deadline, and leave the cores idle.

use crate::cargo::Artifact;
use crate::workers;
use anyhow::{Context as _, ensure};
use std::ffi::OsStr;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// The most programs at a time. Each has as many threads as there are cores, and some measure time.
const MAX_AT_ONCE: usize = 4;

/// Runs all test programs among what cargo has built. Prints what each one printed when it ends.
///
/// # Errors
/// Names those that failed.
pub(crate) fn run(artifacts: &[Artifact], environment: &[(&str, &OsStr)]) -> anyhow::Result<()> {
    let of_tests = artifacts.iter().filter(|artifact| artifact.profile.test);
    let programs: Vec<(&Path, &Artifact)> = of_tests
        .filter_map(|artifact| Some((artifact.executable.as_deref()?, artifact)))
        .collect();
    let at_once = workers::count(None).min(MAX_AT_ONCE);
    let outcomes = workers::each(&programs, at_once, |_, (path, artifact)| {
        run_one(path, artifact, environment)
    })?;
    let failed: Vec<String> = outcomes
        .into_iter()
        .filter_map(|outcome| Some(format!("{:#}", outcome.err()?)))
        .collect();
    ensure!(
        failed.is_empty(),
        "test programs failed:\n  {}",
        failed.join("\n  ")
    );
    Ok(())
}

/// Runs one test program as `cargo test` does: in its package's directory.
fn run_one(path: &Path, artifact: &Artifact, environment: &[(&str, &OsStr)]) -> anyhow::Result<()> {
    let package = artifact.manifest_path.parent().unwrap_or(Path::new("."));
    let start = Instant::now();
    let output = Command::new(path)
        .current_dir(package)
        .env("CARGO_MANIFEST_DIR", package)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", path.display()))?;
    let mut stdout = std::io::stdout().lock();
    writeln!(
        stdout,
        "\n     Running {}, {:.1} s ({})",
        artifact.target.name,
        start.elapsed().as_secs_f64(),
        path.display()
    )?;
    stdout.write_all(&output.stdout)?;
    stdout.write_all(&output.stderr)?;
    stdout.flush()?;
    ensure!(
        output.status.success(),
        "{} ({}) ended with {}",
        artifact.target.name,
        path.display(),
        output.status
    );
    Ok(())
}
