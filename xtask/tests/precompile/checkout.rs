//! A checkout for a test: kernels of its own, an output directory, and a count of the compilers
//! that ran.

use peersum_artifact::{Manifest, ModuleKey, Target, verify_file};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;

/// A file of the test tree.
pub(crate) fn test_file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(path)
}

/// The pinned nvcc; installed by the first test that asks.
pub(crate) fn pinned_nvcc() -> &'static Path {
    static NVCC: OnceLock<PathBuf> = OnceLock::new();
    NVCC.get_or_init(|| {
        let xtask = env!("CARGO_BIN_EXE_xtask");
        let installed = Command::new(xtask)
            .args(["toolchain", "install"])
            .status()
            .unwrap();
        assert!(
            installed.success(),
            "the pinned compiler cannot be installed"
        );
        let output = Command::new(xtask)
            .args(["toolchain", "path"])
            .output()
            .unwrap();
        let site = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end());
        site.join("nvidia/cu13/bin/nvcc")
    })
}

/// The result of a command.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Answer {
    pub(crate) fn of(command: &mut Command) -> Self {
        let output = command.stdin(Stdio::null()).output().unwrap();
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The answer, which must be a success.
    #[track_caller]
    pub(crate) fn succeeded(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }

    /// The answer, which must be exit status 1 without a panic and must have each of `words` in its
    /// output.
    #[track_caller]
    pub(crate) fn failed_saying(self, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(1), "{self:#?}");
        assert!(!self.stderr.contains("panicked"), "{self:#?}");
        for word in words {
            assert!(
                self.stderr.contains(word) || self.stdout.contains(word),
                "`{word}` is not in {self:#?}"
            );
        }
        self
    }
}

/// The families that the small kernels have.
const FAMILIES: [&str; 2] = ["--family", "push,pull"];

/// The contents of a directory by file name.
pub(crate) type Snapshot = BTreeMap<String, Vec<u8>>;

pub(crate) struct Checkout {
    _root: TempDir,
    path: PathBuf,
}

impl Checkout {
    /// A checkout with the small kernels and no output.
    pub(crate) fn new() -> Self {
        Self::named("checkout")
    }

    /// The same in a directory of a given name.
    pub(crate) fn named(name: &str) -> Self {
        Self::within(&std::env::temp_dir(), name)
    }

    /// The same in a new directory within `parent`.
    pub(crate) fn within(parent: &Path, name: &str) -> Self {
        let root = tempfile::tempdir_in(parent).unwrap();
        let checkout = Self {
            path: root.path().join(name),
            _root: root,
        };
        fs::create_dir_all(checkout.kernels()).unwrap();
        for name in ["names.cuh", "push.cu", "pull.cu", "scale.cuh"] {
            fs::copy(
                test_file("kernels").join(name),
                checkout.kernels().join(name),
            )
            .unwrap();
        }
        checkout
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn kernels(&self) -> PathBuf {
        self.path().join("kernels")
    }

    pub(crate) fn out(&self) -> PathBuf {
        self.path().join("cubins")
    }

    /// Replaces text in one of the kernels.
    pub(crate) fn edit(&self, file: &str, from: &str, to: &str) {
        let path = self.kernels().join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{file} has no `{from}`");
        fs::write(path, text.replace(from, to)).unwrap();
    }

    /// precompile of four modules for sm_90 with further arguments; any of them may be given again.
    pub(crate) fn precompile(&self, arguments: &[&str]) -> Command {
        self.precompile_with("pinned", "sm_90", arguments)
    }

    /// precompile for `native` where nvidia-smi lists these capabilities.
    pub(crate) fn precompile_native(&self, capabilities: &str) -> Command {
        let bin = self.path().join("bin");
        fs::create_dir(&bin).unwrap();
        let fake = test_file("fakes/nvidia-smi.sh");
        std::os::unix::fs::symlink(fake, bin.join("nvidia-smi")).unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let mut command = self.precompile_with("pinned", "native", &[]);
        command
            .env("PATH", path)
            .env("SMI_CAPABILITIES", capabilities);
        command
    }

    /// precompile with a given toolkit and architectures.
    pub(crate) fn precompile_with(
        &self,
        toolkit: &str,
        archs: &str,
        arguments: &[&str],
    ) -> Command {
        if toolkit == "pinned" {
            pinned_nvcc();
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.args([
            "precompile",
            "--dtype",
            "bf16",
            "--world-size",
            "2..3",
            "--toolkit",
            toolkit,
            "--arch",
            archs,
        ]);
        command.arg("--kernels").arg(self.kernels()).args(arguments);
        if !arguments.contains(&"--family") {
            command.args(FAMILIES);
        }
        if !arguments.contains(&"--out") {
            command.arg("--out").arg(self.out());
        }
        self.set_environment(&mut command);
        command
    }

    /// `precompile --check` of the same.
    pub(crate) fn check(&self) -> Command {
        self.check_of(FAMILIES[1])
    }

    /// The same of these families.
    pub(crate) fn check_of(&self, families: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.args([
            "precompile",
            "--check",
            "--dtype",
            "bf16",
            "--world-size",
            "2..3",
            "--arch",
            "sm_90",
        ]);
        command
            .args(["--family", families])
            .arg("--kernels")
            .arg(self.kernels())
            .arg("--out")
            .arg(self.out());
        command
    }

    fn set_environment(&self, command: &mut Command) {
        command
            .env("NVCC_CCBIN", test_file("fakes/cxx-logging.sh"))
            .env("CXX_LOG", self.log())
            .env("CXX_BEFORE", "");
        command
            .env_remove("NVCC_APPEND_FLAGS")
            .env_remove("NVCC_PREPEND_FLAGS");
    }

    fn log(&self) -> PathBuf {
        self.path().join("cxx.log")
    }

    /// How many compiler processes ran since the last time this was asked: each has the host
    /// compiler preprocess one file for the device.
    pub(crate) fn compiled(&self) -> usize {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let _ = fs::remove_file(self.log());
        log.lines()
            .filter(|line| line.contains("-D__CUDA_ARCH__="))
            .count()
    }

    pub(crate) fn manifest(&self) -> Manifest {
        Manifest::read_dir(&self.out()).unwrap()
    }

    /// The output, which must be complete: every file is as the manifest says, and there is no
    /// other.
    #[track_caller]
    pub(crate) fn whole_output(&self) -> Snapshot {
        let manifest = self.manifest();
        let mut names = vec!["manifest.json".to_owned()];
        for module in &manifest.modules {
            verify_file(&self.out(), module).unwrap();
            names.push(module.file_name());
        }
        names.sort();
        let snapshot = snapshot(&self.out());
        assert_eq!(snapshot.keys().cloned().collect::<Vec<_>>(), names);
        snapshot
    }
}

/// Reads a directory.
pub(crate) fn snapshot(directory: &Path) -> Snapshot {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                fs::read(entry.path()).unwrap(),
            )
        })
        .collect()
}

pub(crate) fn module(name: &str) -> ModuleKey {
    ModuleKey::all().find(|key| key.name() == name).unwrap()
}

pub(crate) fn target(name: &str) -> Target {
    name.parse().unwrap()
}
