//! `cargo xtask bindings`: the Rust side of `kernels/abi.h`, made by bindgen and committed.
//!
//! bindgen and the libclang that it loads are heavy, so they are behind the feature `bindings` of this crate: without it,
//! the command runs itself again with it. Nothing else needs either.

use clap::Args;
use std::process::ExitCode;

/// Regenerate kernels/src/abi.rs from kernels/abi.h.
///
/// libclang is taken from the machine (LIBCLANG_PATH, else where it is usually installed); where there is none, a pinned
/// one is installed once into the user's cache.
#[derive(Debug, Args)]
pub(crate) struct BindingsArgs {
    /// Write nothing; fail if the committed bindings are not those of the header
    #[arg(long)]
    check: bool,
}

/// Runs `cargo xtask bindings`.
///
/// # Errors
/// No libclang can be had, the header does not parse, the bindings cannot be written, or with `--check` they are stale.
pub(crate) fn run(args: &BindingsArgs) -> anyhow::Result<ExitCode> {
    implementation::run(args)
}

#[cfg(not(feature = "bindings"))]
mod implementation {
    use super::BindingsArgs;
    use crate::workspace;
    use anyhow::Context as _;
    use std::process::{Command, ExitCode};

    pub(super) fn run(args: &BindingsArgs) -> anyhow::Result<ExitCode> {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(workspace::root()).args([
            "run",
            "--locked",
            "--quiet",
            "--package=xtask",
            "--features=bindings",
            "--",
            "bindings",
        ]);
        if args.check {
            cargo.arg("--check");
        }
        let status = cargo
            .status()
            .with_context(|| format!("cannot start {cargo:?}"))?;
        // The inner run has said what went wrong.
        Ok(if status.success() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

#[cfg(feature = "bindings")]
mod implementation {
    use super::BindingsArgs;
    use crate::toolchain::wheels::WheelSet;
    use crate::workspace;
    use anyhow::{Context as _, bail};
    use bindgen::callbacks::ParseCallbacks;
    use bindgen::{Formatter, MacroTypeVariation, RustEdition, RustTarget};
    use std::ffi::OsStr;
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::process::CommandExt as _;
    use std::path::{Path, PathBuf};
    use std::process::{Command, ExitCode};

    /// Where clang-sys looks first.
    const LIBRARY_VARIABLE: &str = "LIBCLANG_PATH";

    const LIBCLANG: WheelSet<'static> = WheelSet {
        name: "libclang 18.1",
        requirements: include_str!("../../ci/libclang.txt"),
        download: "about 25 MB",
        licence: None,
        ways_out: &[
            "install libclang (Debian, Ubuntu: apt install libclang-dev), or set LIBCLANG_PATH to a directory that has it",
        ],
    };

    /// The library's path within its wheel.
    const WHEEL_LIBRARY: &str = "clang/native/libclang.so";

    /// What the generated file begins with. Constants come from macros, whose comments libclang does not give.
    const HEAD: &str = "\
//! What the host and the kernels agree on. Its documentation is `kernels/abi.h`.
//!
//! Generated from that file by `cargo xtask bindings`; do not edit.
#![allow(missing_docs, non_camel_case_types)]";

    pub(super) fn run(args: &BindingsArgs) -> anyhow::Result<ExitCode> {
        if let Err(reason) = clang_sys::load() {
            return with_pinned_libclang(&reason);
        }
        let kernels = workspace::root().join("kernels");
        let path = kernels.join("src/abi.rs");
        let generated = generate(&kernels.join("abi.h"))?;
        let committed = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        if generated == committed {
            eprintln!("{} is up to date", path.display());
        } else if args.check {
            bail!(
                "{} is not what kernels/abi.h gives: run `cargo xtask bindings` and commit the result",
                path.display()
            );
        } else {
            write(&path, &generated).with_context(|| format!("cannot write {}", path.display()))?;
            eprintln!("wrote {}", path.display());
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Installs the pinned libclang and starts this command anew with it, since the library is found by the environment.
    ///
    /// Returns only if that failed.
    fn with_pinned_libclang(reason: &str) -> anyhow::Result<ExitCode> {
        if let Some(path) = std::env::var_os(LIBRARY_VARIABLE) {
            bail!(
                "no usable libclang in {LIBRARY_VARIABLE}={}: {reason}. Correct it, or unset it to have a pinned one installed",
                path.display()
            );
        }
        let installed = LIBCLANG.install(
            |site| match site.join(WHEEL_LIBRARY).is_file() {
                true => Ok(PathBuf::from(WHEEL_LIBRARY)),
                false => Err(format!("it has no {WHEEL_LIBRARY}")),
            },
            &mut |note| eprintln!("note: {note}"),
        )?;
        let program = std::env::current_exe().context("cannot tell the path of xtask")?;
        let error = Command::new(&program)
            .args(std::env::args_os().skip(1))
            .env(LIBRARY_VARIABLE, installed.dir.join(&installed.facts))
            .exec();
        Err(error).with_context(|| format!("cannot start {} again", program.display()))
    }

    /// The text of the bindings of `header`, the same on every machine.
    fn generate(header: &Path) -> anyhow::Result<String> {
        let target = RustTarget::stable(89, 0).map_err(|error| anyhow::anyhow!("{error}"))?;
        let bindings = bindgen::Builder::default()
            .header(header.to_string_lossy())
            // Ordinary comments document the items too; and no header of the machine's may be found.
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
            // Its arrays are longer than those that the standard library has a default for.
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
            // A comment is one paragraph. Brackets are indices in it, and no links to Rust items.
            let lines: Vec<&str> = comment.lines().map(str::trim).collect();
            let text = lines.join(" ").replace('[', "\\[").replace(']', "\\]");
            // bindgen puts nothing between the slashes and the text.
            Some(format!(" {text}"))
        }
    }

    /// Replaces the file by one rename, so that a build never sees half of it.
    fn write(path: &Path, text: &str) -> std::io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new()
            .prefix(path.file_name().unwrap_or(OsStr::new("abi.rs")))
            .tempfile_in(directory)?;
        file.write_all(text.as_bytes())?;
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.as_file().set_permissions(permissions)?;
        file.persist(path)?;
        Ok(())
    }
}
