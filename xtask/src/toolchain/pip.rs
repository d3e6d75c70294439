//! The program that fetches wheels: `python3 -m pip`, else `uv pip`.

use anyhow::{Context as _, bail, ensure};
use std::env;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

/// The first pip that knows the manylinux2014 tag of NVIDIA's wheels.
const OLDEST_PIP: (u32, u32) = (19, 3);

/// Settings that would make pip do something else than fill the target directory: install
/// elsewhere, for another platform or from source, read further requirements, or exit early. The
/// index, the proxy and the certificates stay the user's choice, here and in pip's configuration
/// files.
const PIP_VARIABLES_REMOVED: &[&str] = &[
    "PIP_ABI",
    "PIP_CONSTRAINT",
    "PIP_EDITABLE",
    "PIP_GROUP",
    "PIP_HELP",
    "PIP_IMPLEMENTATION",
    "PIP_NO_BINARY",
    "PIP_ONLY_BINARY",
    "PIP_PLATFORM",
    "PIP_PREFIX",
    "PIP_PYTHON",
    "PIP_PYTHON_VERSION",
    "PIP_REPORT",
    "PIP_REQUIREMENT",
    "PIP_ROOT",
    "PIP_SRC",
    "PIP_TARGET",
    "PIP_VERSION",
];

/// Switches that a configuration file may have set too, which only a variable with the opposite
/// value overrides.
const PIP_VARIABLES_OFF: &[&str] = &["PIP_DRY_RUN", "PIP_REQUIRE_VIRTUALENV", "PIP_USER"];

/// The same for uv.
const UV_VARIABLES_REMOVED: &[&str] = &[
    "UV_BUILD_CONSTRAINT",
    "UV_CONSTRAINT",
    "UV_EXCLUDE_NEWER",
    "UV_NO_BINARY",
    "UV_NO_BINARY_PACKAGE",
    "UV_NO_VERIFY_HASHES",
    "UV_OVERRIDE",
    "UV_PROJECT",
    "UV_PYTHON_PLATFORM",
    "UV_REQUIRE_HASHES",
    "UV_WORKING_DIR",
];

/// A usable installer of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Installer {
    /// `python3 -m pip`, 19.3 or newer.
    Pip,
    /// `uv pip`.
    Uv,
}

impl Installer {
    /// Finds pip, else uv.
    ///
    /// # Errors
    /// What is wrong with each of them.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let Some(pip) = pip_fault() else {
            return Ok(Self::Pip);
        };
        match Command::new("uv")
            .arg("--version")
            .stdin(Stdio::null())
            .output()
        {
            Ok(output) if output.status.success() => Ok(Self::Uv),
            Ok(output) => bail!("{pip}, and `uv --version` ended with {}", output.status),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                bail!("{pip}, and uv is not on PATH")
            }
            Err(error) => bail!("{pip}, and uv cannot be started ({error})"),
        }
    }

    /// Installs the wheels that `requirements` names into the directory `target`, every hash
    /// checked.
    ///
    /// The child's standard input is `lock`, an empty file. This way an installer that outlives a
    /// killed xtask still holds the lock, and no other run removes its files.
    ///
    /// # Errors
    /// The installer could not be run, or it failed; then the error has all that it printed.
    pub(crate) fn run(
        self,
        requirements: &Path,
        target: &Path,
        lock: File,
        notes: &mut dyn FnMut(String),
    ) -> anyhow::Result<()> {
        let mut command = self.command();
        command
            .args(["--require-hashes", "--no-deps", "--only-binary=:all:"])
            .arg("--target")
            .arg(target)
            .arg("--requirement")
            .arg(requirements)
            .stdin(lock)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let described = format!("{command:?}");
        let cannot_run = || format!("cannot run {described}");

        let mut child = command.spawn().with_context(cannot_run)?;
        let (sender, lines) = mpsc::channel();
        let mut output = String::new();
        thread::scope(|scope| {
            if let Some(pipe) = child.stdout.take() {
                let sender = sender.clone();
                scope.spawn(move || send_lines(pipe, &sender));
            }
            if let Some(pipe) = child.stderr.take() {
                scope.spawn(move || send_lines(pipe, &sender));
            }
            // Ends when both pipes end, because both senders are dropped then.
            for line in lines {
                if is_progress(&line) {
                    notes(line.trim().to_owned());
                }
                output.push_str(&line);
            }
        });
        let status = child.wait().with_context(cannot_run)?;
        ensure!(
            status.success(),
            "the installer ended with {status}. The command was\n  {described}\nand it printed\n{}",
            output.trim_end()
        );
        Ok(())
    }

    /// The command, without the arguments that say what to install and where.
    fn command(self) -> Command {
        match self {
            Self::Pip => {
                let mut command = pip();
                command.args(["install", "--progress-bar=off"]);
                // A configuration file may set a prefix, which pip refuses together with a target,
                // or a root in front of every path. These two values mean none.
                command.args(["--prefix=", "--root=/"]);
                command
            }
            Self::Uv => {
                let mut command = Command::new("uv");
                command.args(["pip", "install", "--no-progress"]);
                remove_variables(&mut command, UV_VARIABLES_REMOVED);
                command
            }
        }
    }
}

/// `python3 -m pip`, without the settings that it must not inherit.
fn pip() -> Command {
    let mut command = Command::new("python3");
    remove_variables(&mut command, PIP_VARIABLES_REMOVED);
    for variable in PIP_VARIABLES_OFF {
        command.env(variable, "0");
    }
    command.args(["-m", "pip", "--no-input", "--disable-pip-version-check"]);
    command
}

/// Removes those of `variables` that are set from the environment of `command`. It does not mention
/// the others, so that the command is short when it is shown.
fn remove_variables(command: &mut Command, variables: &[&str]) {
    for variable in variables {
        if env::var_os(variable).is_some() {
            command.env_remove(variable);
        }
    }
}

/// Why `python3 -m pip` cannot be used; `None` if it can.
fn pip_fault() -> Option<String> {
    let output = match pip().arg("--version").stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Some("python3 is not on PATH".to_owned());
        }
        Err(error) => return Some(format!("python3 cannot be started ({error})")),
    };
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last_line = stderr.trim().lines().next_back().unwrap_or_default();
        return Some(format!(
            "`python3 -m pip` ended with {} ({last_line})",
            output.status
        ));
    }
    let stdout = String::from_utf8_lossy(&output.stdout);
    match parse_pip_version(&stdout) {
        Some(version) if version >= OLDEST_PIP => None,
        Some((major, minor)) => Some(format!(
            "`python3 -m pip` is {major}.{minor}, older than {}.{}",
            OLDEST_PIP.0, OLDEST_PIP.1
        )),
        None => Some(format!(
            "`python3 -m pip --version` printed {:?}",
            stdout.trim()
        )),
    }
}

/// Reads `pip 23.2.1 from /usr/lib/python3/dist-packages/pip (python 3.11)`.
fn parse_pip_version(text: &str) -> Option<(u32, u32)> {
    let version = text.trim().strip_prefix("pip ")?.split(' ').next()?;
    let mut parts = version.split('.');
    let major = parts.next()?.parse().ok()?;
    // "24.1b2" is a pre-release of 24.1.
    let minor = parts.next().map_or("0", |part| {
        part.split(|c: char| !c.is_ascii_digit())
            .next()
            .unwrap_or_default()
    });
    Some((major, minor.parse().ok()?))
}

/// Sends what comes out of `pipe` line by line, until it ends.
fn send_lines(pipe: impl Read, lines: &mpsc::Sender<String>) {
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    while pipe
        .read_until(b'\n', &mut line)
        .is_ok_and(|bytes| bytes > 0)
    {
        // The receiver outlives the senders, so this cannot fail.
        let _ = lines.send(String::from_utf8_lossy(&line).into_owned());
        line.clear();
    }
}

/// Whether a line of pip's or uv's output is worth showing while it works.
fn is_progress(line: &str) -> bool {
    ["Downloading ", "Using cached ", "Installing collected "]
        .iter()
        .any(|start| line.trim_start().starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_every_form_of_pip_is_read() {
        let from = "from /usr/lib/python3/dist-packages/pip (python 3.11)";
        assert_eq!(
            parse_pip_version(&format!("pip 23.2.1 {from}\n")),
            Some((23, 2))
        );
        assert_eq!(
            parse_pip_version(&format!("pip 19.3 {from}")),
            Some((19, 3))
        );
        assert_eq!(
            parse_pip_version(&format!("pip 24.1b2 {from}")),
            Some((24, 1))
        );
        assert_eq!(parse_pip_version(&format!("pip 26 {from}")), Some((26, 0)));
        assert_eq!(parse_pip_version("Python 3.11.7"), None);
        assert_eq!(parse_pip_version("pip seven"), None);
        assert_eq!(parse_pip_version(""), None);
    }
}
