//! cudarc's build script takes the CUDA version of its bindings from the first nvcc on PATH, and
//! panics at most answers. The workspace's configuration names the version instead.

use crate::machine::{Answer, Machine, fake};
use serde_json::Value;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const VARIABLE: &str = "CUDARC_CUDA_VERSION";
/// The bindings of the workspace, as `.cargo/config.toml` names them.
const BINDINGS: &str = "cuda-13040";

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn cargo(directory: &Path) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    // The cargo that runs this test has put the variable of the configuration here.
    cargo.current_dir(directory).env_remove(VARIABLE);
    cargo
}

/// What an nvcc of this release prints for `--version`, after `first_line` if there is one.
fn version_answer(release: &str, first_line: Option<&str>) -> String {
    let lines = [
        "nvcc: NVIDIA (R) Cuda compiler driver",
        "Copyright (c) 2005-2026 NVIDIA Corporation",
        "Built on Wed_Aug_20_01:58:59_PM_PDT_2025",
        &format!("Cuda compilation tools, release {release}, V{release}.88"),
        &format!("Build cuda_{release}.r{release}/compiler.36424714_0"),
    ];
    let lines = first_line.into_iter().chain(lines);
    lines.collect::<Vec<_>>().join("\n")
}

/// A package with the build script and the features that cudarc has in this workspace.
struct StandIn {
    machine: Machine,
}

impl StandIn {
    fn new() -> Self {
        let mut command = cargo(workspace());
        // Some packages of other platforms may not be downloaded.
        let platform = format!("{}-unknown-linux-gnu", env::consts::ARCH);
        command
            .args(["metadata", "--format-version=1", "--locked", "--offline"])
            .args(["--filter-platform", &platform]);
        let answer = Answer::of(&mut command).succeeded();
        let metadata: Value = serde_json::from_str(&answer.stdout).unwrap();
        let named = |list: &Value, key: &str, value: &str| -> Value {
            let mut entries = list.as_array().unwrap().iter();
            let found = entries.find(|entry| entry[key].as_str() == Some(value));
            found.unwrap_or_else(|| panic!("no {value}")).clone()
        };
        let package = named(&metadata["packages"], "name", "cudarc");
        let node = named(
            &metadata["resolve"]["nodes"],
            "id",
            package["id"].as_str().unwrap(),
        );
        let manifest_path = PathBuf::from(package["manifest_path"].as_str().unwrap());

        let machine = Machine::new();
        machine.has("nvcc", &fake("nvcc-answering.sh"));
        let project = machine.path("stand-in");
        fs::create_dir_all(project.join("src")).unwrap();
        fs::write(project.join("src/lib.rs"), "").unwrap();
        fs::copy(
            manifest_path.with_file_name("build.rs"),
            project.join("build.rs"),
        )
        .unwrap();
        let mut manifest = String::from(
            "[workspace]\n[package]\nname = \"stand-in\"\nedition = \"2021\"\n\
             [lints.rust]\nunexpected_cfgs = \"allow\"\n[features]\n",
        );
        manifest.push_str(&format!("default = {}\n", node["features"]));
        for feature in node["features"].as_array().unwrap() {
            manifest.push_str(&format!("{feature} = []\n"));
        }
        fs::write(project.join("Cargo.toml"), manifest).unwrap();
        Self { machine }
    }

    /// Builds it from `directory`, whose configuration applies, on a machine whose nvcc gives
    /// this answer. Returns cargo's answer and what the build script told cargo.
    fn check(&self, directory: &Path, nvcc: &str) -> (Answer, String) {
        let target = tempfile::tempdir_in(self.machine.path("home")).unwrap();
        let path = env::split_paths(&env::var_os("PATH").unwrap()).collect::<Vec<_>>();
        let path = [self.machine.path("bin")].into_iter().chain(path);
        let mut command = cargo(directory);
        command
            .args(["check", "--offline", "--manifest-path"])
            .arg(self.machine.path("stand-in/Cargo.toml"))
            .arg("--target-dir")
            .arg(target.path())
            .env("PATH", env::join_paths(path).unwrap())
            .env("NVCC_ANSWER", nvcc);
        let answer = Answer::of(&mut command);
        let scripts = fs::read_dir(target.path().join("debug/build")).unwrap();
        let output = scripts
            .filter_map(|entry| fs::read_to_string(entry.unwrap().path().join("output")).ok())
            .collect();
        (answer, output)
    }
}

#[test]
fn the_rust_build_takes_no_notice_of_an_nvcc_on_the_path() {
    let stand_in = StandIn::new();
    // The last two answers cause no panic, but bindings that are too old or not the workspace's.
    let answers = [
        version_answer("10.1", None),
        version_answer("13.5", None),
        version_answer("14.0", None),
        version_answer("13.0", Some("Welcome to the compile farm")),
        version_answer("11.5", None),
        version_answer("12.8", None),
    ];
    for answer in &answers {
        let (cargo, output) = stand_in.check(workspace(), answer);
        cargo.succeeded();
        let wanted = format!("feature=\"{BINDINGS}\"\n");
        assert!(output.contains(&wanted), "{answer}\n{output}");
        assert_eq!(output.matches("feature=\"cuda-").count(), 1, "{output}");
    }
    // The same build without the configuration: then these answers decide.
    let outside = stand_in.machine.path("home");
    let (cargo, _) = stand_in.check(&outside, &answers[1]);
    assert!(
        !cargo.success && cargo.stderr.contains("13.5"),
        "{cargo:#?}"
    );
    let (cargo, output) = stand_in.check(&outside, &answers[4]);
    cargo.succeeded();
    assert!(output.contains("feature=\"cuda-11050\""), "{output}");
}
