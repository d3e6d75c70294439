//! `cargo xtask test` and `cargo xtask ci`: sequences of cargo and xtask steps.

use crate::cargo;
use crate::precompile::{self, ArchChoice, Request, stock_headers};
use crate::test_programs;
use crate::toolchain::{self, ToolkitChoice};
use crate::workspace;
use anyhow::{Context as _, ensure};
use clap::Args;
use peersum_artifact::{Arch, Dtype, MANIFEST_FILE, RELEASE_SET, Target};
use std::ffi::OsStr;
use std::path::Path;
use xshell::{Shell, cmd};

/// Run all tests, with the compiled kernels of this checkout
///
/// Compiles the kernels that the tests need, into target/test-cubins, runs the tests of the whole
/// workspace, and then the smoke grid on the emulator. Installs the pinned compiler and NVRTC on
/// first use. That every module compiles for every architecture without a spill is for `cargo xtask
/// precompile` and `cargo xtask ci` to show.
#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Arguments for `cargo test`, such as `-p peersum-artifact` or `-- --nocapture`
    /// [default: the whole workspace]
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    pub(crate) cargo_test_args: Vec<String>,
}

/// The whole workspace for cargo: with the protocols that are broken on purpose, which the
/// tests must notice, and with what xtask builds only when asked.
const WORKSPACE: [&str; 4] = [
    "--locked",
    "--workspace",
    "--features",
    "peersum-harness/negative-controls,xtask/dist",
];

/// What is compiled with nvcc's stock headers too.
const STOCK_HEADERS_ARCH: &str = "sm_90";

/// A shell at the workspace's root.
fn shell() -> anyhow::Result<Shell> {
    let shell = Shell::new()?;
    shell.change_dir(workspace::root());
    Ok(shell)
}

/// Compiles what is asked for with the pinned compiler.
fn compile(request: Request) -> anyhow::Result<()> {
    let request = Request {
        toolkit: ToolkitChoice::Pinned,
        ..request
    };
    precompile::run(&request)
}

/// Runs `cargo test` over the workspace.
///
/// # Errors
/// A step cannot be started or fails.
pub(crate) fn test(args: &TestArgs) -> anyhow::Result<()> {
    let largest = Request {
        arch: [Arch::new(8, 0), Arch::new(10, 0), Arch::new(12, 0)]
            .map(|arch| ArchChoice::Named(Target::Cubin(arch)))
            .into(),
        dtype: vec![Dtype::Bf16, Dtype::U8],
        world_size: vec!["8".parse()?],
        ..Request::default()
    };
    let all = Request {
        arch: vec![ArchChoice::Named(Target::Cubin(Arch::new(9, 0)))],
        ..Request::default()
    };
    let mut directories = Vec::new();
    for (name, request) in [("all", all), ("largest", largest)] {
        let out = workspace::target().join("test-cubins").join(name);
        directories.push(out.clone());
        compile(Request {
            out: Some(out),
            ..request
        })?;
    }
    test_with(&std::env::join_paths(directories)?, &args.cargo_test_args)
}

/// Runs `cargo test` over the workspace, with the modules of these directories: every one for
/// sm_90, and the largest of each family for the other architectures of the release set.
fn test_with(cubins: &OsStr, given: &[String]) -> anyhow::Result<()> {
    let nvrtc = toolchain::resolve_nvrtc()?;
    let (shell, cargo) = (shell()?, cargo::program());
    if given.is_empty() {
        return test_workspace(&shell, cubins, &nvrtc);
    }
    let names_package = |argument: &String| argument == "-p" || argument.starts_with("--package");
    let scope: &[&str] = match given.iter().any(names_package) {
        true => &["--locked"],
        false => &WORKSPACE,
    };
    cmd!(shell, "{cargo} test {scope...} {given...}")
        .env("PEERSUM_TEST_CUBINS", cubins)
        .env("PEERSUM_TEST_NVRTC", nvrtc)
        .run()?;
    Ok(())
}

/// All test programs, the examples in the documentation, and the smoke grid.
fn test_workspace(shell: &Shell, cubins: &OsStr, nvrtc: &Path) -> anyhow::Result<()> {
    let arguments = [&["test", "--no-run"], &WORKSPACE[..]].concat();
    let built = cargo::artifacts(&arguments).context("the tests do not build")?;
    let examples = cargo::executable(&built, "all_reduce").and_then(Path::parent);
    let environment = [
        ("PEERSUM_TEST_CUBINS", cubins),
        ("PEERSUM_TEST_NVRTC", nvrtc.as_os_str()),
        (
            "PEERSUM_TEST_EXAMPLES",
            examples
                .context("cargo test builds no examples")?
                .as_os_str(),
        ),
    ];
    test_programs::run(&built, &environment)?;
    let cargo = cargo::program();
    let scope = &WORKSPACE;
    cmd!(shell, "{cargo} test --doc {scope...}").run()?;
    // The harness that the tests have used: one in release mode would be a second build of
    // everything, and the emulated kernels are optimised in either.
    let harness = cargo::executable(&built, "peersum-harness");
    let harness = harness.context("cargo test builds no harness")?;
    // The reference of RMSNorm takes long in a program that is not optimised, and the tests have
    // calls with it among 1, 2, 3, 5 and 8 ranks.
    let others = "--op all_reduce,all_gather,reduce_scatter,broadcast";
    for flags in [others, "--op rms_norm --world-size 4,6,7"] {
        for ranks in ["threads", "processes"] {
            let flags = flags.split(' ');
            cmd!(
                shell,
                "{harness} grid --device emulator --grid smoke {flags...} --ranks {ranks}"
            )
            .run()?;
        }
    }
    Ok(())
}

/// Runs every check of CI in turn and stops at the first that fails.
///
/// # Errors
/// A step cannot be started or fails.
pub(crate) fn ci() -> anyhow::Result<()> {
    let (shell, cargo) = (shell()?, cargo::program());
    // Another command of xtask runs through cargo: `bindings` builds this program with another
    // feature in the same place, so the file that runs here may be gone.
    cmd!(shell, "{cargo} fmt --all --check").run()?;
    // The scope of the tests: with other features the emulated kernels would be compiled twice.
    let scope = &WORKSPACE;
    let lints = ["-D", "warnings"];
    cmd!(
        shell,
        "{cargo} clippy {scope...} --all-targets -- {lints...}"
    )
    .run()?;
    cmd!(shell, "{cargo} xtask bindings --check").run()?;
    compile(Request::default())?;
    prelude_matches_stock_headers()?;
    test_with(workspace::cubins().as_os_str(), &[])?;
    cmd!(shell, "{cargo} xtask dist").run()?;
    cmd!(shell, "{cargo} xtask dist --verify target/dist").run()?;
    Ok(())
}

/// Compiles the modules of one element type for one architecture again, without the prelude, and
/// compares the files: the prelude must not be able to change code. All types and architectures use
/// the same part of it.
///
/// If the pinned compiler's headers do not compile with this machine's C library, there is nothing
/// to compare with; it says so.
fn prelude_matches_stock_headers() -> anyhow::Result<()> {
    let nvcc = toolchain::resolve(&ToolkitChoice::Pinned)?;
    if let Some(fault) = stock_headers::fault(&nvcc, RELEASE_SET[0])? {
        eprintln!("NOT CHECKED: that the prelude changes no code. {fault}");
        return Ok(());
    }
    let stock = workspace::target().join("cubins-stock-headers");
    let with_prelude = workspace::cubins();
    compile(Request {
        arch: vec![STOCK_HEADERS_ARCH.parse()?],
        dtype: vec![Dtype::Bf16],
        stock_headers: true,
        out: Some(stock.clone()),
        ..Request::default()
    })?;
    let mut different = Vec::new();
    for entry in fs_err::read_dir(&stock)? {
        let name = entry?.file_name();
        // The manifest has cache keys, which the prelude is a part of.
        let is_module = name != MANIFEST_FILE;
        if is_module && fs_err::read(stock.join(&name))? != fs_err::read(with_prelude.join(&name))?
        {
            different.push(name.to_string_lossy().into_owned());
        }
    }
    ensure!(
        different.is_empty(),
        "not the same with xtask/prelude/cuda_runtime.h as with nvcc's own headers: {}; fix the \
         prelude",
        different.join(", ")
    );
    eprintln!("the files are the same with the prelude and with nvcc's own headers");
    Ok(())
}
