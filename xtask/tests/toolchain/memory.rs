//! An nvcc's answers about itself are remembered as long as they are certain to be true.

use crate::machine::{Answer, Machine, fake};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles the fake nvcc, as a binary of the given version, into `toolkit`.
fn compile_nvcc(toolkit: &Path, version: &str) {
    let release = version.rsplit_once('.').unwrap().0;
    let bin = toolkit.join("bin");
    fs::create_dir_all(&bin).unwrap();
    // First beside its place and then moved, as installers do.
    let fresh = bin.join("nvcc.new");
    let mut cc = Command::new("cc");
    cc.arg(fake("nvcc.c"))
        .arg("-o")
        .arg(&fresh)
        .arg(format!("-DVERSION=\"{version}\""))
        .arg(format!("-DRELEASE=\"{release}\""));
    Answer::of(&mut cc).succeeded();
    fs::rename(&fresh, bin.join("nvcc")).unwrap();
}

struct Toolkit {
    machine: Machine,
    dir: PathBuf,
}

impl Toolkit {
    fn new() -> Self {
        let machine = Machine::new();
        let dir = machine.path("cuda");
        compile_nvcc(&dir, "13.0.1");
        fs::create_dir_all(dir.join("nvvm/bin")).unwrap();
        fs::write(dir.join("nvvm/bin/cicc"), "cicc").unwrap();
        fs::write(dir.join("bin/ptxas"), "ptxas").unwrap();
        Self { machine, dir }
    }

    /// The version that xtask believes this nvcc to be, and how many questions it asked to find
    /// out.
    fn version(&self) -> (String, usize) {
        let log = self.dir.join("log");
        let _ = fs::remove_file(&log);
        let mut which = self.machine.toolchain(&["which", "--toolkit"]);
        let answer = Answer::of(which.arg(&self.dir)).succeeded();
        let version = answer
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix("version "));
        let questions = fs::read_to_string(log).map_or(0, |text| text.lines().count());
        (version.unwrap().trim().to_owned(), questions)
    }

    /// The one file that remembers this nvcc.
    fn memory(&self) -> PathBuf {
        let dir = fs::read_dir(self.machine.path("toolchains/compilers")).unwrap();
        let files: Vec<PathBuf> = dir.map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    }
}

fn version(of: &str, questions: usize) -> (String, usize) {
    (of.to_owned(), questions)
}

#[test]
fn a_compiler_that_stays_the_same_is_asked_once() {
    let toolkit = Toolkit::new();
    assert_eq!(toolkit.version(), version("13.0.1", 4));
    assert_eq!(toolkit.version(), version("13.0.1", 0));
    assert_eq!(toolkit.version(), version("13.0.1", 0));
}

#[test]
fn a_compiler_that_was_replaced_is_asked_again() {
    let toolkit = Toolkit::new();
    assert_eq!(toolkit.version(), version("13.0.1", 4));
    compile_nvcc(&toolkit.dir, "13.1.2");
    assert_eq!(toolkit.version(), version("13.1.2", 4));
    assert_eq!(toolkit.version(), version("13.1.2", 0));
}

#[test]
fn a_link_that_was_pointed_at_another_toolkit_is_asked_again() {
    let (old, new) = (Toolkit::new(), Toolkit::new());
    compile_nvcc(&new.dir, "13.2.5");
    let link = old.machine.path("current");
    let which = || {
        let mut which = old.machine.toolchain(&["which", "--toolkit"]);
        Answer::of(which.arg(&link)).succeeded().stdout
    };
    for (toolkit, version) in [(&old, "13.0.1"), (&new, "13.2.5"), (&old, "13.0.1")] {
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(&toolkit.dir, &link).unwrap();
        let answer = which();
        assert!(
            answer.contains(&format!("version        {version}\n")),
            "{answer}"
        );
    }
}

#[test]
fn a_memory_that_is_cut_short_or_edited_is_not_believed() {
    let toolkit = Toolkit::new();
    toolkit.version();
    let memory = toolkit.memory();
    let whole = fs::read_to_string(&memory).unwrap();
    for damaged in [
        whole[..whole.len() / 2].to_owned(),
        whole.replace("13.0.1", "13.0.2"),
        String::new(),
        "{}".to_owned(),
    ] {
        fs::write(&memory, damaged).unwrap();
        assert_eq!(toolkit.version(), version("13.0.1", 4));
        assert_eq!(toolkit.version(), version("13.0.1", 0));
    }
}

#[test]
fn a_memory_that_cannot_be_written_costs_questions_and_nothing_else() {
    let toolkit = Toolkit::new();
    fs::write(toolkit.machine.path("toolchains/compilers"), "in the way").unwrap();
    assert_eq!(toolkit.version(), version("13.0.1", 4));
    assert_eq!(toolkit.version(), version("13.0.1", 4));
}

#[test]
fn a_script_is_asked_each_time_since_it_may_call_another_nvcc_tomorrow() {
    let machine = Machine::new();
    let toolkit = machine.toolkit("cuda", "13.0.1");
    let which = || {
        let mut which = machine.toolchain(&["which", "--toolkit"]);
        Answer::of(which.arg(&toolkit)).succeeded().stdout
    };
    assert!(which().contains("13.0.1"));
    fs::write(toolkit.join("release"), "13.1.7\n").unwrap();
    assert!(which().contains("13.1.7"));
}

#[test]
fn a_fault_is_not_remembered() {
    let toolkit = Toolkit::new();
    let cicc = toolkit.dir.join("nvvm/bin/cicc");
    fs::remove_file(&cicc).unwrap();
    let mut which = toolkit.machine.toolchain(&["which", "--toolkit"]);
    which.arg(&toolkit.dir);
    Answer::of(&mut which).failed().says(&["incomplete"]);
    fs::write(&cicc, "cicc").unwrap();
    Answer::of(&mut which).succeeded();
}
