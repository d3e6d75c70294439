//! The workspace's test programs: built by cargo, run several at a time. Many of them wait on real
//! time, for a rank that never comes or a deadline, and leave the cores idle.

use crate::cargo::cargo;
use crate::{workers, workspace};
use anyhow::{Context as _, ensure};
use serde::Deserialize;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The most programs at a time. Each has as many threads as there are cores, and some measure time.
const MAX_AT_ONCE: usize = 4;

/// What cargo says about an artifact.
#[derive(Debug, Deserialize)]
struct Artifact {
    executable: Option<PathBuf>,
    manifest_path: PathBuf,
    profile: Profile,
    target: Target,
}

#[derive(Debug, Deserialize)]
struct Profile {
    test: bool,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
}

/// What `cargo test` builds.
pub(crate) struct TestPrograms {
    artifacts: Vec<Artifact>,
}

impl TestPrograms {
    /// Builds what `cargo test` with these arguments would run.
    ///
    /// # Errors
    /// Something does not build.
    pub(crate) fn build(arguments: &[&str]) -> anyhow::Result<Self> {
        let output = cargo(&workspace::root())
            .args([
                "test",
                "--no-run",
                "--message-format=json-render-diagnostics",
            ])
            .args(arguments)
            .stderr(Stdio::inherit())
            .output()
            .context("cannot start cargo")?;
        ensure!(output.status.success(), "the tests do not build");
        let text = String::from_utf8_lossy(&output.stdout);
        // Other messages have another form.
        let artifacts = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        Ok(Self {
            artifacts: artifacts.collect(),
        })
    }

    /// The path of an executable that is not a test program.
    pub(crate) fn executable(&self, name: &str) -> Option<&Path> {
        let is_it = |artifact: &&Artifact| !artifact.profile.test && artifact.target.name == name;
        let mut found = self.artifacts.iter().filter(is_it);
        found.find_map(|artifact| artifact.executable.as_deref())
    }

    /// Runs all test programs. Prints what each one printed when it ends.
    ///
    /// # Errors
    /// Names those that failed.
    pub(crate) fn run(&self, environment: &[(&str, &Path)]) -> anyhow::Result<()> {
        let of_tests = self
            .artifacts
            .iter()
            .filter(|artifact| artifact.profile.test);
        let programs: Vec<(&Path, &Artifact)> = of_tests
            .filter_map(|artifact| Some((artifact.executable.as_deref()?, artifact)))
            .collect();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let outcomes = workers::each(&programs, cores.min(MAX_AT_ONCE), |_, (path, artifact)| {
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
}

/// Runs one test program as `cargo test` does: in its package's directory.
fn run_one(path: &Path, artifact: &Artifact, environment: &[(&str, &Path)]) -> anyhow::Result<()> {
    let package = artifact.manifest_path.parent().unwrap_or(Path::new("."));
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
        "\n     Running {} ({})",
        artifact.target.name,
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
