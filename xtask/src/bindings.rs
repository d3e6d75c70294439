//! `cargo xtask bindings`: the Rust side of `kernels/abi.h`, made by bindgen and committed.
//!
//! bindgen and libclang take long to build and load, so they are behind the feature `bindings` of
//! this crate. Without it, the command builds xtask with it and runs that. Nothing else needs them.

use clap::Args;
#[cfg(any(feature = "bindings", test))]
use {fs_err as fs, std::path::Path};

/// Regenerate kernels/src/abi.rs from kernels/abi.h
///
/// Uses the machine's libclang: LIBCLANG_PATH, else the usual directories. If there is none,
/// installs a pinned one, once, in the user's cache directory.
#[derive(Debug, Args)]
pub(crate) struct BindingsArgs {
    /// Write nothing; fail if the committed bindings are not those of the header
    #[arg(long)]
    check: bool,
}

/// Runs `cargo xtask bindings`.
///
/// # Errors
/// There is no libclang, the header does not parse, the bindings cannot be written, or with
/// `--check` they are stale.
#[cfg(feature = "bindings")]
pub(crate) fn run(args: &BindingsArgs) -> anyhow::Result<()> {
    generator::run(args.check)
}

/// Builds xtask with bindgen and runs the command with that.
///
/// # Errors
/// Cargo cannot be started.
#[cfg(not(feature = "bindings"))]
pub(crate) fn run(_args: &BindingsArgs) -> anyhow::Result<()> {
    crate::cargo::run_again_with_feature("bindings")
}

/// Writes `generated` over the committed bindings if they differ; with `check`, a difference is an
/// error. Returns what was done, to be printed after the path.
#[cfg(any(feature = "bindings", test))]
fn settle(path: &Path, generated: &str, check: bool) -> anyhow::Result<&'static str> {
    if fs::read(path).is_ok_and(|committed| committed == generated.as_bytes()) {
        return Ok("is up to date");
    }
    anyhow::ensure!(
        !check,
        "{} is not what kernels/abi.h gives: run `cargo xtask bindings` and commit the result",
        path.display()
    );
    // By one rename, so that a build never sees an incomplete file.
    let next = path.with_extension("rs.next");
    fs::write(&next, generated)?;
    fs::rename(&next, path)?;
    Ok("was regenerated")
}

#[cfg(feature = "bindings")]
mod generator {
    use crate::toolchain::wheels::WheelSet;
    use crate::workspace;
    use anyhow::{Context as _, bail};
    use bindgen::callbacks::ParseCallbacks;
    use bindgen::{Formatter, MacroTypeVariation, RustEdition, RustTarget};
    use std::borrow::Cow;
    use std::os::unix::process::CommandExt as _;
    use std::path::Path;
    use std::process::Command;

    /// Where clang-sys looks first.
    const LIBRARY_VARIABLE: &str = "LIBCLANG_PATH";

    const LIBCLANG: WheelSet = WheelSet {
        name: "libclang 18.1",
        requirements: Cow::Borrowed(include_str!("../../ci/libclang.txt")),
        download: "about 25 MB",
        licence: None,
        files: &[WHEEL_LIBRARY],
        check: |_| Ok(()),
        ways_out: &[
            "install libclang (Debian, Ubuntu: apt install libclang-dev), or set LIBCLANG_PATH to \
             a directory that has it",
        ],
    };

    /// The library's path within its wheel.
    const WHEEL_LIBRARY: &str = "clang/native/libclang.so";

    /// What the generated file begins with. Constants come from macros, whose comments libclang
    /// does not give.
    const HEAD: &str = "\
//! What the host and the kernels agree on. Its documentation is `kernels/abi.h`.
//!
//! Generated from that file by `cargo xtask bindings`; do not edit.
#![allow(missing_docs, non_camel_case_types)]";

    pub(super) fn run(check: bool) -> anyhow::Result<()> {
        if let Err(reason) = clang_sys::load() {
            return with_pinned_libclang(&reason);
        }
        let kernels = workspace::root().join("kernels");
        let path = kernels.join("src/abi.rs");
        let generated = generate(&kernels.join("abi.h"))?;
        let outcome = super::settle(&path, &generated, check)?;
        eprintln!("{} {}", path.display(), outcome);
        Ok(())
    }

    /// Installs the pinned libclang and starts this command again with it: clang-sys finds the
    /// library through the environment.
    ///
    /// Returns only if that failed.
    fn with_pinned_libclang(reason: &str) -> anyhow::Result<()> {
        if let Some(path) = std::env::var_os(LIBRARY_VARIABLE) {
            bail!(
                "no usable libclang in {LIBRARY_VARIABLE}={}: {reason}. Correct it, or unset it to \
                 install a pinned one",
                path.display()
            );
        }
        let installed = LIBCLANG.install()?;
        let program = std::env::current_exe().context("cannot tell the path of xtask")?;
        let error = Command::new(&program)
            .args(std::env::args_os().skip(1))
            .env(LIBRARY_VARIABLE, installed.join(WHEEL_LIBRARY))
            .exec();
        Err(error).with_context(|| format!("cannot start {} again", program.display()))
    }

    /// The text of the bindings of `header`, the same on every machine.
    fn generate(header: &Path) -> anyhow::Result<String> {
        let target = RustTarget::stable(89, 0).map_err(|error| anyhow::anyhow!("{error}"))?;
        let bindings = bindgen::Builder::default()
            .header(header.to_string_lossy())
            // Ordinary comments are documentation too, and the machine's headers must not be found.
            .clang_args(["-x", "c", "-std=c11", "-fparse-all-comments", "-nostdinc"])
            // One target for all: the layout is the same on every 64-bit Linux that has a GPU.
            .clang_arg("--target=x86_64-unknown-linux-gnu")
            .rust_target(target)
            .rust_edition(RustEdition::Edition2024)
            .raw_line(HEAD)
            .disable_header_comment()
            .use_core()
            .allowlist_item("(PEERSUM_|Peersum|peersum_).*")
            .default_macro_constant_type(MacroTypeVariation::Unsigned)
            .derive_debug(true)
            .derive_copy(true)
            .derive_default(true)
            // The standard library has no `Default` for arrays as long as its.
            .no_default("PeersumControl")
            .layout_tests(true)
            .sort_semantically(false)
            .parse_callbacks(Box::new(Comments))
            .formatter(Formatter::Prettyplease)
            .generate()
            .with_context(|| format!("bindgen cannot read {}", header.display()))?;
        Ok(bindings.to_string())
    }

    /// Makes Rust documentation of C comments.
    #[derive(Debug)]
    struct Comments;

    impl ParseCallbacks for Comments {
        fn process_comment(&self, comment: &str) -> Option<String> {
            // A comment is one paragraph. Brackets in it are indices, not links to Rust items.
            let lines: Vec<&str> = comment.lines().map(str::trim).collect();
            let text = lines.join(" ").replace('[', "\\[").replace(']', "\\]");
            // bindgen puts nothing between the slashes and the text.
            Some(format!(" {text}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_names_the_command_that_mends_stale_bindings_and_writes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("abi.rs");
        for committed in [None, Some("// edited\n"), Some("")] {
            if let Some(text) = committed {
                fs::write(&path, text).unwrap();
            }
            let error = settle(&path, "// generated\n", true)
                .unwrap_err()
                .to_string();
            assert!(error.contains("cargo xtask bindings"), "{error}");
            assert!(error.contains(&path.display().to_string()), "{error}");
            assert_eq!(fs::read_to_string(&path).ok().as_deref(), committed);
        }
    }

    #[test]
    fn stale_bindings_are_replaced_whole_and_others_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("abi.rs");
        let settle = |check| settle(&path, "// generated\n", check).unwrap();
        assert_eq!(settle(false), "was regenerated");
        assert_eq!(fs::read_to_string(&path).unwrap(), "// generated\n");

        let written = fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!([false, true].map(settle), ["is up to date"; 2]);
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written);
        let files = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(files, 1, "something was left behind");
    }
}
