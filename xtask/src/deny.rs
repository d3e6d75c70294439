//! `cargo xtask deny`: the licences and the sources of all dependencies against deny.toml.
//!
//! cargo-deny is the tool for it and takes minutes to build, so CI must do without: where it is not installed, licences and
//! sources are checked here. That needs a reader of licence expressions, which is behind the feature `dist`.

use crate::cargo::cargo;
use crate::workspace;
use anyhow::{Context as _, bail, ensure};
use clap::Args;
use std::process::{ExitCode, Stdio};

/// Check licences and sources of all dependencies against deny.toml
///
/// By cargo-deny if it is installed, which checks bans too, else by a check of its own.
#[derive(Debug, Args)]
pub(crate) struct DenyArgs {
    /// Check the RustSec advisories too; needs cargo-deny and the network
    #[arg(long)]
    advisories: bool,
}

/// Runs the command.
///
/// # Errors
/// A dependency is not allowed, or cannot be judged.
pub(crate) fn run(args: &DenyArgs) -> anyhow::Result<ExitCode> {
    let is_installed = cargo(&workspace::root())
        .args(["deny", "--version"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !is_installed {
        if args.advisories {
            bail!("only cargo-deny knows the advisories: `cargo install --locked cargo-deny`");
        }
        return implementation::check();
    }
    let rules = workspace::root().join("deny.toml");
    for workspace in workspace::workspaces()? {
        let mut command = cargo(&workspace);
        command.args(["deny", "--locked", "--config"]).arg(&rules);
        command.args(["check", "licenses", "bans", "sources"]);
        command.args(args.advisories.then_some("advisories"));
        let status = command.status().context("cannot start cargo deny")?;
        ensure!(status.success(), "{command:?} ended with {status}");
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(not(feature = "dist"))]
mod implementation {
    use std::process::ExitCode;

    pub(super) fn check() -> anyhow::Result<ExitCode> {
        crate::cargo::run_again_with_feature("dist")
    }
}

#[cfg(feature = "dist")]
mod implementation {
    use crate::cargo::{captured, cargo};
    use crate::workspace;
    use anyhow::{Context as _, ensure};
    use serde::Deserialize;
    use spdx::{Expression, Licensee, ParseMode};
    use std::fs;
    use std::path::Path;
    use std::process::ExitCode;

    /// The registry's name in `cargo metadata`, also behind a mirror.
    const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

    #[derive(Deserialize)]
    struct Deny {
        graph: Graph,
        licenses: Licences,
    }

    #[derive(Deserialize)]
    struct Graph {
        targets: Vec<String>,
    }

    #[derive(Deserialize)]
    struct Licences {
        allow: Vec<String>,
    }

    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }

    #[derive(Deserialize)]
    struct Package {
        name: String,
        version: String,
        license: Option<String>,
        source: Option<String>,
    }

    pub(super) fn check() -> anyhow::Result<ExitCode> {
        let root = workspace::root();
        let text = fs::read_to_string(root.join("deny.toml")).context("cannot read deny.toml")?;
        let deny: Deny = toml::from_str(&text).context("deny.toml")?;
        let allowed = licensees(&deny.licenses.allow)?;

        let mut packages = Vec::new();
        for workspace in workspace::workspaces()? {
            packages.extend(dependencies(&workspace, &deny.graph.targets)?);
        }
        let refusals: Vec<String> = packages
            .iter()
            .filter_map(|package| {
                let reason = refusal(package, &allowed)?;
                Some(format!("{} {}: {reason}", package.name, package.version))
            })
            .collect();
        ensure!(
            refusals.is_empty(),
            "deny.toml does not allow\n{}",
            refusals.join("\n")
        );
        eprintln!(
            "{} packages have licences and sources that deny.toml allows",
            packages.len()
        );
        Ok(ExitCode::SUCCESS)
    }

    /// All that the crates of a workspace depend on, and they themselves.
    fn dependencies(workspace: &Path, targets: &[String]) -> anyhow::Result<Vec<Package>> {
        let mut cargo = cargo(workspace);
        cargo
            .args([
                "metadata",
                "--locked",
                "--all-features",
                "--format-version=1",
            ])
            .args(
                targets
                    .iter()
                    .map(|target| format!("--filter-platform={target}")),
            );
        let output = captured(&mut cargo)?;
        let metadata: Metadata = serde_json::from_slice(&output)
            .context("cargo metadata gives no such JSON as expected")?;
        Ok(metadata.packages)
    }

    fn licensees(names: &[String]) -> anyhow::Result<Vec<Licensee>> {
        names
            .iter()
            .map(|name| {
                Licensee::parse(name)
                    .with_context(|| format!("`{name}` in deny.toml is no licence"))
            })
            .collect()
    }

    /// Why the package is not allowed, or `None` if it is.
    fn refusal(package: &Package, allowed: &[Licensee]) -> Option<String> {
        if let Some(source) = package
            .source
            .as_ref()
            .filter(|source| *source != CRATES_IO)
        {
            return Some(format!("it comes from {source}"));
        }
        let Some(licence) = &package.license else {
            return Some("it states no licence".to_owned());
        };
        // Old packages write `MIT/Apache-2.0`.
        match Expression::parse_mode(licence, ParseMode::LAX) {
            Ok(expression) => {
                let holds = expression.evaluate(|required| {
                    allowed.iter().any(|licensee| licensee.satisfies(required))
                });
                (!holds).then(|| format!("its licence is {licence}"))
            }
            Err(_) => Some(format!("its licence `{licence}` cannot be read")),
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn refused(license: Option<&str>, source: Option<&str>) -> Option<String> {
            let allowed =
                ["MIT", "Apache-2.0 WITH LLVM-exception", "Unicode-3.0"].map(str::to_owned);
            let package = Package {
                name: "a".to_owned(),
                version: "1.0.0".to_owned(),
                license: license.map(str::to_owned),
                source: source.map(str::to_owned),
            };
            refusal(&package, &licensees(&allowed).unwrap())
        }

        #[test]
        fn one_allowed_alternative_is_enough_and_every_part_of_an_and_must_be_allowed() {
            for licence in [
                "MIT",
                "MIT OR GPL-3.0-only",
                "GPL-3.0-only/MIT",
                "MIT AND Unicode-3.0",
                "(GPL-2.0-only OR MIT) AND Unicode-3.0",
                "Apache-2.0 WITH LLVM-exception",
            ] {
                assert_eq!(refused(Some(licence), Some(CRATES_IO)), None, "{licence}");
            }
            for licence in [
                "GPL-3.0-only",
                "MIT AND GPL-3.0-only",
                "Apache-2.0",
                "mine",
                "",
            ] {
                let reason = refused(Some(licence), Some(CRATES_IO)).unwrap();
                assert!(reason.contains(licence), "{reason}");
            }
        }

        #[test]
        fn a_package_without_a_licence_or_from_elsewhere_is_refused_whatever_else() {
            assert!(refused(None, None).unwrap().contains("no licence"));
            for source in ["git+https://example.org/a", "registry+https://example.org/"] {
                assert!(refused(Some("MIT"), Some(source)).unwrap().contains(source));
            }
            assert_eq!(
                refused(Some("MIT"), None),
                None,
                "a package of this workspace"
            );
        }
    }
}
