//! pip, which fetches wheels: `python3 -m pip`.

use super::discovery::find_program;
use crate::cargo::captured;
use anyhow::{Context as _, ensure};
use std::env;
use std::fs::File;
use std::path::Path;
use std::process::Command;

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

/// Installs the wheels that `requirements` names into the directory `target`, every hash checked.
///
/// The child's standard input is `lock`, an empty file. This way a pip that outlives a killed xtask
/// still holds the lock, and no other run removes its files.
///
/// # Errors
/// pip could not be run, or it failed; then the error has all that it printed.
pub(crate) fn install(requirements: &Path, target: &Path, lock: File) -> anyhow::Result<()> {
    let mut command = pip();
    command
        .args(["install", "--progress-bar=off"])
        // A configuration file may set a prefix, which pip refuses together with a target, or a
        // root in front of every path. These two values mean none.
        .args(["--prefix=", "--root=/"])
        .args(["--require-hashes", "--no-deps", "--only-binary=:all:"])
        .arg("--target")
        .arg(target)
        .arg("--requirement")
        .arg(requirements)
        .stdin(lock);
    captured(&mut command)?;
    Ok(())
}

/// `python3 -m pip`, without the settings that it must not inherit.
fn pip() -> Command {
    let mut command = Command::new("python3");
    for variable in PIP_VARIABLES_REMOVED {
        // Not those that are not set, so that the command is short when it is shown.
        if env::var_os(variable).is_some() {
            command.env_remove(variable);
        }
    }
    for variable in PIP_VARIABLES_OFF {
        command.env(variable, "0");
    }
    command.args(["-m", "pip", "--no-input", "--disable-pip-version-check"]);
    command
}

/// Checks that there is a pip that can be used.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn ensure_usable() -> anyhow::Result<()> {
    ensure!(
        find_program("python3".as_ref()).is_some(),
        "python3 is not on PATH"
    );
    let output = captured(pip().arg("--version"))?;
    let text = String::from_utf8_lossy(&output);
    let (major, minor) = parse_version(&text)
        .with_context(|| format!("`python3 -m pip --version` printed {:?}", text.trim()))?;
    ensure!(
        (major, minor) >= OLDEST_PIP,
        "`python3 -m pip` is {major}.{minor}, older than {}.{}",
        OLDEST_PIP.0,
        OLDEST_PIP.1
    );
    Ok(())
}

/// Reads `pip 23.2.1 from /usr/lib/python3/dist-packages/pip (python 3.11)`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_every_form_of_pip_is_read() {
        let from = "from /usr/lib/python3/dist-packages/pip (python 3.11)";
        assert_eq!(
            parse_version(&format!("pip 23.2.1 {from}\n")),
            Some((23, 2))
        );
        assert_eq!(parse_version(&format!("pip 19.3 {from}")), Some((19, 3)));
        assert_eq!(parse_version(&format!("pip 24.1b2 {from}")), Some((24, 1)));
        assert_eq!(parse_version(&format!("pip 26 {from}")), Some((26, 0)));
        assert_eq!(parse_version("Python 3.11.7"), None);
        assert_eq!(parse_version("pip seven"), None);
        assert_eq!(parse_version(""), None);
    }
}
