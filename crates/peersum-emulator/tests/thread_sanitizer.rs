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

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

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

struct Build {
    world_size: u32,
    broken: u32,
    /// Families whose accesses that carry elements are ordinary ones.
    plain_data: &'static [&'static str],
}

/// The driver with all families.
struct Driver {
    directory: TempDir,
    commands: Vec<String>,
}

impl Driver {
    fn compile(build: &Build) -> Driver {
        let directory = tempfile::tempdir().unwrap();
        for source in peersum_kernels::SOURCES {
            std::fs::write(directory.path().join(source.path), source.text).unwrap();
        }
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut objects: Vec<(Command, PathBuf)> = Vec::new();
        let mut object = |name: &str, source: PathBuf, flags: Vec<String>| {
            let path = directory.path().join(name).with_extension("o");
            let mut compile = compiler();
            compile
                .args(["-std=c++17", "-O1", "-g", "-w", "-c", "-x", "c++"])
                .args(["-fno-exceptions", "-fno-rtti"])
                .args(["-fno-strict-aliasing", "-ffp-contract=off"])
                .args([
                    format!("-DPEERSUM_WORLD_SIZE={}", build.world_size),
                    format!("-DPEERSUM_BREAK={}", build.broken),
                    "-DPEERSUM_EMULATOR_RELEASED_FLAGS".to_owned(),
                ])
                .arg("-I")
                .arg(directory.path())
                .arg("-I")
                .arg(here.join("src/cpp"))
                .args(flags)
                .arg(source)
                .arg("-o")
                .arg(&path);
            objects.push((compile, path));
        };
        for (family, dtype) in FAMILIES {
            // On a GPU each module is a program of its own.
            let mut flags: Vec<String> = peersum_kernels::exported_device_functions()
                .map(|function| format!("-D{function}={family}_{function}"))
                .collect();
            flags.extend(["-include".to_owned(), "platform_emulator.hpp".to_owned()]);
            flags.push(format!("-DPEERSUM_DTYPE={dtype}"));
            if build.plain_data.contains(&family) {
                flags.push("-DPEERSUM_EMULATOR_PLAIN_DATA".to_owned());
            }
            let source = directory.path().join(format!("{family}.cu"));
            object(family, source, flags);
        }
        let driver = here.join("tests/thread_sanitizer/driver.cpp");
        let f32 = vec!["-DPEERSUM_DTYPE=f32".to_owned()];
        object("driver", driver, f32.clone());
        object("runtime", here.join("src/cpp/runtime.cpp"), f32);

        let mut link = compiler();
        link.args(objects.iter().map(|(_, path)| path))
            .arg("-o")
            .arg(directory.path().join("driver"));
        let commands = objects
            .iter()
            .map(|(compile, _)| format!("{compile:?}"))
            .chain([format!("{link:?}")])
            .collect();
        let compiles: Vec<_> = objects
            .into_iter()
            .map(|(mut compile, _)| compile.stderr(Stdio::piped()).spawn())
            .collect();
        let driver = Driver {
            directory,
            commands,
        };
        for compile in compiles {
            driver.check(
                &compile
                    .and_then(|compile| compile.wait_with_output())
                    .unwrap(),
            );
        }
        driver.check(&link.output().unwrap());
        driver
    }

    fn check(&self, output: &Output) {
        assert!(
            output.status.success(),
            "the compiler and its ThreadSanitizer library are needed here\n{}",
            self.report(output)
        );
    }

    fn report(&self, output: &Output) -> String {
        let stderr = String::from_utf8_lossy(&output.stderr);
        format!("{}\n{stderr}", self.commands.join("\n"))
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
        assert!(output.status.success(), "{}", self.report(&output));
    }

    fn assert_reports_a_data_race(&self) {
        let output = self.run(&[]);
        let report = self.report(&output);
        assert!(
            !output.status.success() && report.contains("ThreadSanitizer: data race"),
            "{report}"
        );
    }
}

fn compiler() -> Command {
    let mut command = Command::new(std::env::var_os("CXX").unwrap_or_else(|| "c++".into()));
    command.args(["-fsanitize=thread", "-pthread"]);
    command
}

#[test]
fn calls_of_all_kinds_behind_each_other_have_no_data_race() {
    for world_size in [2, 3] {
        let driver = Driver::compile(&Build {
            world_size,
            broken: NOTHING,
            plain_data: &["pull"],
        });
        driver.assert_clean(&[]);
    }
}

#[test]
fn calls_that_are_lost_have_no_data_race() {
    for world_size in [2, 3] {
        // Status and poison words are as wide as elements: ordinary accesses would be to both.
        let driver = Driver::compile(&Build {
            world_size,
            broken: NOTHING,
            plain_data: &[],
        });
        for kind in 0..KINDS {
            driver.assert_clean(&[kind.to_string()]);
        }
    }
}

#[test]
fn a_missing_barrier_is_reported_as_a_data_race() {
    for broken in [NO_OPENING_BARRIER, NO_CLOSING_BARRIER, NO_ROW_BARRIER] {
        for world_size in [2, 3] {
            let driver = Driver::compile(&Build {
                world_size,
                broken,
                plain_data: &["pull"],
            });
            driver.assert_reports_a_data_race();
        }
    }
}

#[test]
fn ordinary_accesses_to_slots_are_reported_as_a_data_race() {
    for plain_data in [&["push"], &["move"]] {
        let driver = Driver::compile(&Build {
            world_size: 2,
            broken: NOTHING,
            plain_data,
        });
        driver.assert_reports_a_data_race();
    }
}
