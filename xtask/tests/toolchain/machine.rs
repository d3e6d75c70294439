//! A machine for a test: its `PATH`, its home directory and the toolkits on it, all in one
//! temporary directory.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;

/// A program of `tests/fakes`.
pub(crate) fn fake(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fakes")
        .join(name)
}

/// The python3 of the machine that runs the tests. A version manager's wrapper needs more of the
/// environment than the tests keep.
pub(crate) fn real_python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let output = Command::new("python3")
            .args(["-c", "import sys; print(sys.executable)"])
            .output()
            .expect("these tests need python3");
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    })
}

/// The result of a command.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Answer {
    pub(crate) fn of(command: &mut Command) -> Self {
        let output = command.stdin(Stdio::null()).output().unwrap();
        Self {
            success: output.status.success(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The answer, which must be a success.
    #[track_caller]
    pub(crate) fn succeeded(self) -> Self {
        assert!(self.success, "{self:#?}");
        self
    }

    /// The answer, which must be a failure with one error message.
    #[track_caller]
    pub(crate) fn failed(self) -> Self {
        assert!(!self.success, "{self:#?}");
        assert_eq!(
            self.stderr.matches("error: ").count(),
            1,
            "one message: {self:#?}"
        );
        assert!(!self.stderr.contains("panicked"), "{self:#?}");
        self
    }

    /// The standard output, which must be the path of a directory.
    #[track_caller]
    pub(crate) fn directory(&self) -> PathBuf {
        let dir = PathBuf::from(self.stdout.trim_end());
        assert!(dir.is_absolute() && dir.is_dir(), "{self:#?}");
        dir
    }

    /// How many notes say that an nvcc was passed over.
    pub(crate) fn passed_over(&self) -> usize {
        self.stderr.matches("note: passed over").count()
    }

    #[track_caller]
    pub(crate) fn says(&self, words: &[&str]) {
        for word in words {
            assert!(
                self.stderr.contains(word),
                "standard error lacks {word:?}: {self:#?}"
            );
        }
    }
}

pub(crate) struct Machine {
    dir: TempDir,
}

impl Machine {
    /// A machine with a C++ compiler and nothing else.
    pub(crate) fn new() -> Self {
        let machine = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for dir in ["bin", "home", "toolchains", "wheels"] {
            fs::create_dir(machine.path(dir)).unwrap();
        }
        machine.has("c++", &fake("cxx.sh"));
        machine
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Puts `program` on the `PATH` as `name`. A link, because a copy cannot be run while a process
    /// that another test forks has it open for writing.
    pub(crate) fn has(&self, name: &str, program: &Path) {
        symlink(program, self.path("bin").join(name)).unwrap();
    }

    /// Puts the machine's real python3 on the `PATH`.
    pub(crate) fn has_python(&self) {
        // By a script that has the program's own path: python finds its library by it.
        self.has("python3", &fake("python3-gated.sh"));
        fs::write(self.path("gate"), "").unwrap();
    }

    /// Puts a fake pip on the `PATH`, which installs a toolkit at once, whatever it is asked for.
    pub(crate) fn has_fake_pip(&self) {
        self.has("python3", &fake("python3-copying.sh"));
        let toolkit = self.toolkit("wheels-toolkit", "13.0.1");
        fs::write(toolkit.join("bin/ptxas"), "ptxas").unwrap();
        fs::write(toolkit.join("nvvm/bin/cicc"), "cicc").unwrap();
    }

    /// A toolkit `name` with a fake nvcc of the given version, and its directory.
    pub(crate) fn toolkit(&self, name: &str, version: &str) -> PathBuf {
        let toolkit = self.broken_toolkit(name, "nvcc.sh");
        fs::write(toolkit.join("release"), format!("{version}\n")).unwrap();
        fs::create_dir_all(toolkit.join("nvvm/bin")).unwrap();
        fs::write(toolkit.join("nvvm/bin/cicc"), "").unwrap();
        toolkit
    }

    /// A toolkit `name` with nothing but the fake `nvcc`.
    pub(crate) fn broken_toolkit(&self, name: &str, nvcc: &str) -> PathBuf {
        let toolkit = self.path(name);
        fs::create_dir_all(toolkit.join("bin")).unwrap();
        symlink(fake(nvcc), toolkit.join("bin/nvcc")).unwrap();
        toolkit
    }

    /// `xtask toolchain ...` on this machine, without the tests' own environment.
    pub(crate) fn toolchain(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command
            .arg("toolchain")
            .args(arguments)
            .env_clear()
            .env("PATH", self.path("bin"))
            .env("HOME", self.path("home"))
            .env("PEERSUM_TOOLCHAIN_DIR", self.path("toolchains"))
            .env("PIP_NO_INDEX", "1")
            .env("PIP_FIND_LINKS", self.path("wheels"))
            .env("REAL_PYTHON", real_python())
            .env("INSTALLS", self.path("installs"))
            .env("GATE", self.path("gate"))
            .env("TOOLKIT", self.path("wheels-toolkit"))
            .current_dir(self.dir.path());
        command
    }

    /// The answer of `xtask toolchain ...`.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Answer {
        Answer::of(&mut self.toolchain(arguments))
    }

    /// Makes a wheel of a compiler that answers and writes its requirement to the file that is
    /// returned.
    pub(crate) fn compiler_wheel(&self) -> PathBuf {
        self.wheel(&[
            "nvidia/cu13/bin/nvcc=nvcc.sh",
            "nvidia/cu13/release=release",
        ])
    }

    /// Makes a wheel with ptxas, cicc and the given files, each as its path in the wheel and the
    /// fake that it is.
    pub(crate) fn wheel(&self, files: &[&str]) -> PathBuf {
        let release = self.path("release");
        fs::write(&release, "13.0.1\n").unwrap();
        let mut command = Command::new(real_python());
        command
            .arg(fake("make_wheel.py"))
            .arg(self.path("wheels"))
            .arg(format!(
                "nvidia/cu13/bin/ptxas={}",
                fake("cxx.sh").display()
            ))
            .arg(format!(
                "nvidia/cu13/nvvm/bin/cicc={}",
                fake("cxx.sh").display()
            ));
        for file in files {
            let (path, source) = file.split_once('=').unwrap();
            let source = match source {
                "release" => release.clone(),
                fake_name => fake(fake_name),
            };
            command.arg(format!("{path}={}", source.display()));
        }
        let requirement = Answer::of(&mut command).succeeded().stdout;
        let requirements = self.path("requirements.txt");
        fs::write(&requirements, requirement).unwrap();
        requirements
    }

    /// How many installs pip has been asked for.
    pub(crate) fn installs(&self) -> usize {
        fs::read_to_string(self.path("installs")).map_or(0, |text| text.lines().count())
    }

    /// The names in the directory of toolchains, without locks and remembered compilers.
    pub(crate) fn toolchains(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("toolchains")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names
            .filter(|name| !name.ends_with(".lock") && name != "compilers")
            .collect();
        names.sort();
        names
    }
}
