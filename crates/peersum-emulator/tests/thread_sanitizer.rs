//! The kernels under ThreadSanitizer: no data race in the protocols, in calls of all kinds behind
//! each other and in calls that are lost, and the planted races are found.
//!
//! The C++ side alone, since a sanitised Rust program needs a nightly compiler:
//! `thread_sanitizer/driver.cpp` plays the ranks, with a host thread for each emulated one, where
//! the emulator has fibers. To look at a report by hand, build it with the
//! commands that a failing test prints, and run it with `TSAN_OPTIONS=halt_on_error=1`.
//!
//! What the tool can see: relaxed atomics never race, so the accesses of the pull family that carry
//! elements are made ordinary ones (`PEERSUM_EMULATOR_PLAIN_DATA`): there the barriers alone keep
//! them apart. In the push family the data is the flag, and remains atomic; what is checked there
//! is everything else (epochs, own headers, scratch memory in the pull family's halves, outputs,
//! and the sums of rows in the memory of a block, which the row's barrier alone keeps apart). A
//! relaxed flag of the pull family counts as a release here (`PEERSUM_EMULATOR_RELEASED_FLAGS`),
//! since what it announces rests on the end of an earlier kernel or on loads that have returned;
//! one that is relaxed by mistake is not seen (the models in kernels/tests/models see it).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use tempfile::TempDir;

/// Kinds of calls that the driver knows.
const KINDS: u32 = 13;

/// Each with its module's type.
const FAMILIES: [(&str, &str); 4] = [
    ("push", "f32"),
    ("pull", "f32"),
    ("norm", "f32"),
    ("move", "u8"),
];

/// `PEERSUM_BREAK` of `call.cuh`.
const NOTHING: u32 = 0;
const NO_CLOSING_BARRIER: u32 = 2;
const NO_OPENING_BARRIER: u32 = 5;
const NO_ROW_BARRIER: u32 = 7;

/// A program: the driver with all families.
struct Build {
    world_size: u32,
    /// The family that is broken on purpose, and how.
    broken: Option<(&'static str, u32)>,
    /// Families whose accesses that carry elements are ordinary ones.
    plain_data: &'static [&'static str],
}

/// What one source is compiled with. Programs share the objects that are the same in them.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Object {
    source: &'static str,
    dtype: &'static str,
    world_size: u32,
    broken: u32,
    has_plain_data: bool,
}

impl Object {
    fn file_name(&self) -> String {
        let data = if self.has_plain_data {
            "plain"
        } else {
            "atomic"
        };
        format!(
            "{}.{}.{}.{data}.o",
            self.source, self.world_size, self.broken
        )
    }
}

impl Build {
    fn objects(&self) -> impl Iterator<Item = Object> {
        let object = |source, dtype, broken, has_plain_data| Object {
            source,
            dtype,
            world_size: self.world_size,
            broken,
            has_plain_data,
        };
        let families = FAMILIES.map(|(family, dtype)| {
            let of_family = self.broken.filter(|(broken, _)| *broken == family);
            let broken = of_family.map_or(NOTHING, |(_, broken)| broken);
            object(family, dtype, broken, self.plain_data.contains(&family))
        });
        let others = ["driver", "runtime"].map(|source| object(source, "f32", NOTHING, false));
        families.into_iter().chain(others)
    }
}

/// An object's path, and the command that made it.
type Compiled = (PathBuf, String);

/// The objects that are compiled, each once. They are there while a test uses them.
struct Objects {
    directory: TempDir,
    compiled: Mutex<HashMap<Object, Arc<OnceLock<Compiled>>>>,
}

impl Objects {
    fn shared() -> Arc<Objects> {
        static SHARED: Mutex<Weak<Objects>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap();
        shared.upgrade().unwrap_or_else(|| {
            let directory = tempfile::tempdir().unwrap();
            for source in peersum_kernels::SOURCES {
                std::fs::write(directory.path().join(source.path), source.text).unwrap();
            }
            let compiled = Mutex::default();
            let new = Arc::new(Objects {
                directory,
                compiled,
            });
            *shared = Arc::downgrade(&new);
            new
        })
    }

    /// Compiles an object unless a program has it already.
    fn get(&self, object: &Object) -> Compiled {
        let mut compiled = self.compiled.lock().unwrap();
        let entry = Arc::clone(compiled.entry(object.clone()).or_default());
        drop(compiled);
        let compile = || {
            let path = self.directory.path().join(object.file_name());
            let mut command = self.compile(object, &path);
            check(&command.output().unwrap(), &[format!("{command:?}")]);
            (path, format!("{command:?}"))
        };
        entry.get_or_init(compile).clone()
    }

    fn compile(&self, object: &Object, path: &Path) -> Command {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let kernels = self.directory.path();
        let mut compile = compiler();
        compile
            .args(["-std=c++17", "-O1", "-g", "-w", "-c", "-x", "c++"])
            .args(["-fno-exceptions", "-fno-rtti"])
            .args(["-fno-strict-aliasing", "-ffp-contract=off"])
            .args([
                format!("-DPEERSUM_WORLD_SIZE={}", object.world_size),
                format!("-DPEERSUM_BREAK={}", object.broken),
                format!("-DPEERSUM_DTYPE={}", object.dtype),
                "-DPEERSUM_EMULATOR_RELEASED_FLAGS".to_owned(),
            ])
            .arg("-I")
            .arg(kernels)
            .arg("-I")
            .arg(here.join("src/cpp"));
        if object.has_plain_data {
            compile.arg("-DPEERSUM_EMULATOR_PLAIN_DATA");
        }
        let source = match object.source {
            "driver" => here.join("tests/thread_sanitizer/driver.cpp"),
            "runtime" => here.join("src/cpp/runtime.cpp"),
            family => {
                // On a GPU each module is a program of its own.
                let functions = peersum_kernels::exported_device_functions();
                compile.args(functions.map(|name| format!("-D{name}={family}_{name}")));
                compile.args(["-include", "platform_emulator.hpp"]);
                kernels.join(format!("{family}.cu"))
            }
        };
        compile.arg(source).arg("-o").arg(path);
        compile
    }
}

/// A program that is linked.
struct Driver {
    directory: TempDir,
    commands: Vec<String>,
    _objects: Arc<Objects>,
}

impl Driver {
    fn link(build: &Build) -> Driver {
        let objects = Objects::shared();
        let compiled: Vec<Compiled> = std::thread::scope(|scope| {
            let compile = |object: Object| {
                scope.spawn({
                    let objects = &objects;
                    move || objects.get(&object)
                })
            };
            let compiles: Vec<_> = build.objects().map(compile).collect();
            compiles.into_iter().map(|it| it.join().unwrap()).collect()
        });
        let directory = tempfile::tempdir().unwrap();
        let mut link = compiler();
        link.args(compiled.iter().map(|(path, _)| path))
            .arg("-o")
            .arg(directory.path().join("driver"));
        let commands: Vec<String> = compiled
            .into_iter()
            .map(|(_, command)| command)
            .chain([format!("{link:?}")])
            .collect();
        check(&link.output().unwrap(), &commands);
        Driver {
            directory,
            commands,
            _objects: objects,
        }
    }

    fn run(&self, arguments: &[String]) -> Output {
        Command::new(self.directory.path().join("driver"))
            .args(arguments)
            .env("TSAN_OPTIONS", "halt_on_error=1")
            .output()
            .unwrap()
    }

    fn assert_clean(&self, arguments: &[String]) {
        let output = self.run(arguments);
        let report = report(&output, &self.commands);
        assert!(output.status.success(), "{report}");
    }

    fn assert_reports_a_data_race(&self) {
        let output = self.run(&[]);
        let report = report(&output, &self.commands);
        assert!(
            !output.status.success() && report.contains("ThreadSanitizer: data race"),
            "{report}"
        );
    }
}

#[track_caller]
fn check(output: &Output, commands: &[String]) {
    assert!(
        output.status.success(),
        "the compiler and its ThreadSanitizer library are needed here\n{}",
        report(output, commands)
    );
}

fn report(output: &Output, commands: &[String]) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    format!("{}\n{stderr}", commands.join("\n"))
}

fn compiler() -> Command {
    let mut command = Command::new(std::env::var_os("CXX").unwrap_or_else(|| "c++".into()));
    command.args(["-fsanitize=thread", "-pthread"]);
    command
}

#[test]
fn calls_of_all_kinds_behind_each_other_have_no_data_race() {
    for world_size in [2, 3] {
        let driver = Driver::link(&Build {
            world_size,
            broken: None,
            plain_data: &["pull"],
        });
        driver.assert_clean(&[]);
    }
}

#[test]
fn calls_that_are_lost_have_no_data_race() {
    for world_size in [2, 3] {
        // Status and poison words are as wide as elements: ordinary accesses would be to both.
        let driver = Driver::link(&Build {
            world_size,
            broken: None,
            plain_data: &[],
        });
        for kind in 0..KINDS {
            driver.assert_clean(&[kind.to_string()]);
        }
    }
}

#[test]
fn a_missing_barrier_is_reported_as_a_data_race() {
    for broken in [
        ("pull", NO_OPENING_BARRIER),
        ("pull", NO_CLOSING_BARRIER),
        ("norm", NO_ROW_BARRIER),
    ] {
        for world_size in [2, 3] {
            let driver = Driver::link(&Build {
                world_size,
                broken: Some(broken),
                plain_data: &["pull"],
            });
            driver.assert_reports_a_data_race();
        }
    }
}

#[test]
fn ordinary_accesses_to_slots_are_reported_as_a_data_race() {
    for plain_data in [&["push"], &["move"]] {
        let driver = Driver::link(&Build {
            world_size: 2,
            broken: None,
            plain_data,
        });
        driver.assert_reports_a_data_race();
    }
}
