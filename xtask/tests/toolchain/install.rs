//! The pinned toolchain's install, with a small wheel made by the test in place of NVIDIA's. No
//! test needs a network.

use crate::machine::{Answer, Machine, fake};
use crate::seeded::seeded;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// A machine with python and a wheel of a compiler, and the file that requires the wheel.
fn machine_with_wheel() -> (Machine, PathBuf) {
    let machine = Machine::new();
    machine.has_python();
    let requirements = machine.compiler_wheel();
    (machine, requirements)
}

/// `xtask toolchain install` of the wheel.
fn install(machine: &Machine, requirements: &Path) -> Command {
    command(machine, "install", requirements)
}

fn command(machine: &Machine, name: &str, requirements: &Path) -> Command {
    let mut command = machine.toolchain(&[name, "--requirements"]);
    command.arg(requirements);
    command
}

/// Waits for a file that another process makes.
fn wait_for(path: &Path) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Ok(text) = fs::read_to_string(path)
            && !text.is_empty()
        {
            return text;
        }
        assert!(Instant::now() < deadline, "{} never came", path.display());
        thread::sleep(Duration::from_millis(5));
    }
}

/// Starts `command` and reads its notes up to one that contains `words`.
fn start_until(
    command: &mut Command,
    words: &str,
) -> (Child, BufReader<std::process::ChildStderr>) {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut notes = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains(words) {
        line.clear();
        let bytes = notes.read_line(&mut line).unwrap();
        assert_ne!(bytes, 0, "it ended without a note of {words:?}");
    }
    (child, notes)
}

/// Waits for the end of `child`, which must be a success, and returns its standard output.
fn finish(mut child: Child, mut notes: BufReader<std::process::ChildStderr>) -> String {
    let mut stderr = String::new();
    notes.read_to_string(&mut stderr).unwrap();
    let mut stdout = String::new();
    let mut pipe = child.stdout.take().unwrap();
    pipe.read_to_string(&mut stdout).unwrap();
    assert!(child.wait().unwrap().success(), "{stderr}");
    stdout
}

#[test]
fn an_install_is_made_once_and_its_licence_is_named() {
    let (machine, requirements) = machine_with_wheel();
    let answer = Answer::of(&mut install(&machine, &requirements)).succeeded();
    let dir = answer.directory();
    assert!(dir.join("nvidia/cu13/bin/nvcc").is_file());
    answer.says(&["installing the CUDA 13.0 compiler", "100 MB"]);
    let licence = answer
        .stderr
        .lines()
        .filter(|line| line.contains("End User License Agreement"));
    assert_eq!(licence.count(), 1, "{answer:#?}");

    let again = Answer::of(&mut install(&machine, &requirements)).succeeded();
    assert_eq!(
        (again.directory(), again.stderr.as_str()),
        (dir.clone(), "")
    );
    assert_eq!(machine.installs(), 1);
    let path = Answer::of(&mut command(&machine, "path", &requirements)).succeeded();
    assert_eq!((path.directory(), path.stderr.as_str()), (dir, ""));
}

#[test]
fn the_path_of_what_is_not_installed_is_an_error_that_names_the_command() {
    let machine = Machine::new();
    machine
        .ask(&["path"])
        .failed()
        .says(&["not installed", "`cargo xtask toolchain install`"]);
    machine
        .ask(&["path", "--nvrtc"])
        .failed()
        .says(&["not installed", "`cargo xtask toolchain install --nvrtc`"]);
}

#[test]
fn neither_nvcc_nor_pip_is_one_error_that_names_the_ways_out() {
    let ways_out = [
        "python3-pip",
        "uv pip install pip",
        "--toolkit PATH",
        "NVCC",
    ];
    for (python, fault) in [
        (None, "python3 is not on PATH"),
        (Some("python3-without-pip.sh"), "No module named pip"),
        (Some("python3-old.sh"), "is 9.0, older than 19.3"),
    ] {
        let machine = Machine::new();
        if let Some(python) = python {
            machine.has("python3", &fake(python));
        }
        let answer = machine.ask(&["install"]).failed();
        answer.says(&[fault]);
        answer.says(&ways_out);
        assert_eq!(machine.toolchains(), [""; 0]);
    }
}

#[test]
fn every_hash_is_required_and_no_other_package_comes_along() {
    let machine = Machine::new();
    machine.has_fake_pip();
    let answer = machine.ask(&["install"]).succeeded();
    assert!(answer.directory().join("nvidia/cu13/bin/nvcc").exists());
    let arguments = fs::read_to_string(machine.path("installs")).unwrap();
    for argument in [
        " install ",
        "--require-hashes",
        "--no-deps",
        "--only-binary=:all:",
    ] {
        assert!(arguments.contains(argument), "{arguments}");
    }
}

#[test]
fn what_a_failing_pip_printed_is_shown_whole_and_nothing_is_left() {
    let machine = Machine::new();
    machine.has("python3", &fake("python3-failing.sh"));
    let answer = machine.ask(&["install"]).failed();
    for line in 1..=200 {
        answer.says(&[&format!("pip says {line} of 200\n")]);
    }
    answer.says(&["exit status: 23", "--require-hashes", "PIP_INDEX_URL"]);
    assert_eq!(machine.toolchains(), [""; 0]);
}

#[test]
fn a_users_pip_settings_do_not_divert_the_install() {
    let (machine, requirements) = machine_with_wheel();
    let elsewhere = ["user-base", "prefix", "root", "target"];
    let mut install = install(&machine, &requirements);
    install
        .env("PIP_DRY_RUN", "1")
        .env("PIP_USER", "1")
        .env("PIP_REQUIRE_VIRTUALENV", "1")
        .env("PIP_PREFIX", machine.path("prefix"))
        .env("PIP_ROOT", machine.path("root"))
        .env("PIP_TARGET", machine.path("target"))
        .env("PYTHONUSERBASE", machine.path("user-base"))
        .env("PIP_NO_BINARY", ":all:")
        .env("PIP_ONLY_BINARY", ":none:")
        .env("PIP_CONSTRAINT", "/nowhere/constraints.txt")
        .env("PIP_REQUIREMENT", "/nowhere/requirements.txt")
        .env("PIP_PLATFORM", "win_amd64")
        .env("PIP_PYTHON", "/nowhere/python");
    let dir = Answer::of(&mut install).succeeded().directory();
    assert!(dir.join("nvidia/cu13/bin/nvcc").is_file());
    for name in elsewhere {
        assert!(!machine.path(name).exists(), "a setting led to {name}");
    }
}

#[test]
fn a_pip_configuration_file_does_not_divert_the_install_and_its_index_counts() {
    let (machine, requirements) = machine_with_wheel();
    let config = machine.path("pip.conf");
    let dir = |name| machine.path(name).display().to_string();
    let text = format!(
        "[global]\nuser = true\ndry-run = true\nrequire-virtualenv = true\nno-binary = :all:\n\
         prefix = {}\nroot = {}\ntarget = {}\nno-index = true\nfind-links = {}\n",
        dir("prefix"),
        dir("root"),
        dir("target"),
        dir("wheels")
    );
    fs::write(&config, text).unwrap();
    let mut install = install(&machine, &requirements);
    install
        .env("PIP_CONFIG_FILE", &config)
        .env_remove("PIP_NO_INDEX")
        .env_remove("PIP_FIND_LINKS");
    let installed = Answer::of(&mut install).succeeded().directory();
    assert!(installed.join("nvidia/cu13/bin/nvcc").is_file());
    for name in ["prefix", "root", "target"] {
        assert!(!machine.path(name).exists(), "it led to {name}");
    }
}

#[test]
fn a_wheel_with_another_hash_is_refused() {
    let (machine, requirements) = machine_with_wheel();
    let text = fs::read_to_string(&requirements).unwrap();
    let (head, hash) = text.trim_end().split_at(text.trim_end().len() - 1);
    let other = if hash == "0" { "1" } else { "0" };
    fs::write(&requirements, format!("{head}{other}\n")).unwrap();
    Answer::of(&mut install(&machine, &requirements))
        .failed()
        .says(&["DO NOT MATCH THE HASHES"]);
    assert_eq!(machine.toolchains(), [""; 0]);
}

#[test]
fn wheels_that_do_not_work_are_not_installed() {
    for (nvcc, fault) in [
        ("bin/nvcc=nvcc-crashing.sh", "libnothere.so.1"),
        ("bin/nvcc=nvcc-garbled.sh", "Welcome to the compile farm"),
        ("bin/something=nvcc.sh", "it has no nvidia/cu13/bin/nvcc"),
    ] {
        let machine = Machine::new();
        machine.has_python();
        let requirements = machine.wheel(&[&format!("nvidia/cu13/{nvcc}")]);
        Answer::of(&mut install(&machine, &requirements))
            .failed()
            .says(&["does not work on this machine", fault]);
        assert_eq!(machine.toolchains(), [""; 0]);
    }
}

#[test]
fn an_install_that_lost_something_is_not_used_and_is_made_anew() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 6] = [
        ("no stamp", |dir| {
            fs::remove_file(dir.join("peersum-stamp.json")).unwrap();
        }),
        ("half a stamp", |dir| {
            let stamp = dir.join("peersum-stamp.json");
            let text = fs::read(&stamp).unwrap();
            fs::write(stamp, &text[..text.len() / 2]).unwrap();
        }),
        ("an edited stamp", |dir| {
            let stamp = dir.join("peersum-stamp.json");
            let text = fs::read_to_string(&stamp).unwrap();
            fs::write(stamp, text.replace("],", "], ")).unwrap();
        }),
        ("no cicc", |dir| {
            fs::remove_file(dir.join("nvidia/cu13/nvvm/bin/cicc")).unwrap();
        }),
        ("half a ptxas", |dir| {
            fs::write(dir.join("nvidia/cu13/bin/ptxas"), "#!").unwrap();
        }),
        ("an empty directory", |dir| {
            fs::remove_dir_all(dir).unwrap();
            fs::create_dir(dir).unwrap();
        }),
    ];
    let machine = Machine::new();
    machine.has_fake_pip();
    let dir = machine.ask(&["install"]).succeeded().directory();
    for (installs, (name, damage)) in damages.into_iter().enumerate() {
        damage(&dir);
        machine.ask(&["path"]).failed().says(&["not installed"]);
        let answer = machine.ask(&["install"]).succeeded();
        assert_eq!(answer.directory(), dir, "{name}");
        assert_eq!(machine.installs(), installs + 2, "{name}");
        assert!(dir.join("nvidia/cu13/nvvm/bin/cicc").is_file(), "{name}");
        assert_eq!(machine.toolchains().len(), 1, "{name}");
        machine.ask(&["path"]).succeeded();
    }
}

#[test]
fn a_failed_repair_leaves_the_damaged_install_unused() {
    let machine = Machine::new();
    machine.has_fake_pip();
    let dir = machine.ask(&["install"]).succeeded().directory();
    fs::remove_file(dir.join("nvidia/cu13/nvvm/bin/cicc")).unwrap();
    fs::remove_file(machine.path("wheels-toolkit/nvvm/bin/cicc")).unwrap();
    machine.ask(&["install"]).failed().says(&["nvvm/bin/cicc"]);
    machine.ask(&["path"]).failed();
    assert_eq!(machine.toolchains().len(), 1);
}

#[test]
fn two_installs_at_once_are_one_install_and_the_second_says_what_it_waits_for() {
    let (machine, requirements) = machine_with_wheel();
    fs::remove_file(machine.path("gate")).unwrap();
    let (first, first_notes) = start_until(
        &mut install(&machine, &requirements),
        "installing the CUDA 13.0 compiler",
    );
    wait_for(&machine.path("installs"));
    let (second, second_notes) = start_until(
        &mut install(&machine, &requirements),
        "waiting for another install into",
    );
    fs::write(machine.path("gate"), "").unwrap();
    let dirs = [finish(first, first_notes), finish(second, second_notes)];
    assert_eq!(dirs[0], dirs[1]);
    assert_eq!(machine.installs(), 1);
    Answer::of(&mut command(&machine, "path", &requirements)).succeeded();
}

#[test]
fn a_killed_install_is_cleaned_up_once_its_pip_is_gone() {
    let (machine, requirements) = machine_with_wheel();
    let python = machine.path("bin/python3");
    fs::remove_file(&python).unwrap();
    machine.has("python3", &fake("python3-stuck.sh"));
    let started = machine.path("started");
    let (mut killed, _notes) = start_until(
        install(&machine, &requirements).env("STARTED", &started),
        "installing the CUDA 13.0 compiler",
    );
    let pip: i32 = wait_for(&started).trim().parse().unwrap();
    killed.kill().unwrap();
    killed.wait().unwrap();
    let leftover = machine.toolchains();
    assert!(
        leftover.len() == 1 && leftover[0].contains(".staging-"),
        "{leftover:?}"
    );
    Answer::of(&mut command(&machine, "path", &requirements)).failed();

    // The orphaned pip may still be writing, so the next install waits for it.
    fs::remove_file(&python).unwrap();
    symlink(fake("python3-gated.sh"), &python).unwrap();
    let (next, notes) = start_until(
        &mut install(&machine, &requirements),
        "waiting for another install into",
    );
    assert_eq!(machine.toolchains(), leftover);
    let pip = rustix::process::Pid::from_raw(pip).unwrap();
    rustix::process::kill_process(pip, rustix::process::Signal::KILL).unwrap();
    let dir = finish(next, notes);
    assert_eq!(machine.toolchains().len(), 1);
    let dir = Path::new(dir.trim_end());
    assert!(dir.join("nvidia/cu13/nvvm/bin/cicc").is_file());
}

#[test]
fn an_install_killed_at_any_moment_is_whole_or_not_there() {
    let mut random = seeded();

    let machine = Machine::new();
    machine.has_fake_pip();
    let begin = Instant::now();
    let dir = machine.ask(&["install"]).succeeded().directory();
    // Kills come within this time. It adapts to the duration of an install, so that most kills come
    // before its end.
    let mut span = begin.elapsed();
    let mut not_there = 0;
    for _ in 0..20 {
        fs::remove_dir_all(&dir).unwrap();
        let mut child = machine
            .toolchain(&["install"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(span.mul_f64(random.f64()));
        child.kill().unwrap();
        child.wait().unwrap();
        let whole = machine.ask(&["path"]).success;
        assert_eq!(whole, dir.exists());
        not_there += usize::from(!whole);
        span = span.mul_f64(if whole { 0.7 } else { 1.2 });
        machine.ask(&["install"]).succeeded();
        assert!(dir.join("nvidia/cu13/nvvm/bin/cicc").is_file());
        assert_eq!(machine.toolchains().len(), 1);
    }
    assert_ne!(not_there, 0, "no kill came before the end of an install");
}

#[test]
fn the_place_is_the_named_one_else_the_users_cache_directory() {
    let machine = Machine::new();
    machine.has_fake_pip();
    let mut install = machine.toolchain(&["install"]);
    install.env_remove("PEERSUM_TOOLCHAIN_DIR");
    let dir = Answer::of(&mut install).succeeded().directory();
    assert!(dir.starts_with(machine.path("home/.cache/peersum/toolchain")));
    let cache = machine.path("cache");
    install.env("XDG_CACHE_HOME", &cache);
    let dir = Answer::of(&mut install).succeeded().directory();
    assert!(dir.starts_with(cache.join("peersum/toolchain")));
    // Relative to where the command is run, not to where it is used later.
    install.env("PEERSUM_TOOLCHAIN_DIR", "named");
    let dir = Answer::of(&mut install).succeeded().directory();
    assert!(dir.starts_with(machine.path("named")));
}

#[test]
fn no_place_or_an_unusable_one_is_an_error_that_names_the_variable() {
    let machine = Machine::new();
    machine.has_fake_pip();
    let mut install = machine.toolchain(&["install"]);
    install
        .env_remove("PEERSUM_TOOLCHAIN_DIR")
        .env_remove("HOME");
    Answer::of(&mut install)
        .failed()
        .says(&["PEERSUM_TOOLCHAIN_DIR", "HOME"]);
    // Not by its permissions, which root ignores.
    let file = machine.path("file");
    fs::write(&file, "").unwrap();
    install.env("PEERSUM_TOOLCHAIN_DIR", file.join("below"));
    Answer::of(&mut install)
        .failed()
        .says(&["cannot install", "PEERSUM_TOOLCHAIN_DIR"]);
}

#[test]
fn nvrtc_is_a_set_of_its_own() {
    let machine = Machine::new();
    machine.has_python();
    let requirements = machine.wheel(&["nvidia/cu13/lib/libnvrtc.so.13=cxx.sh"]);
    let mut install = machine.toolchain(&["install", "--nvrtc", "--requirements"]);
    let dir = Answer::of(install.arg(&requirements))
        .succeeded()
        .directory();
    assert!(dir.join("nvidia/cu13/lib/libnvrtc.so.13").is_file());

    // The compiler's wheel has no such library.
    let (machine, requirements) = machine_with_wheel();
    let mut install = machine.toolchain(&["install", "--nvrtc", "--requirements"]);
    Answer::of(install.arg(&requirements))
        .failed()
        .says(&["the CUDA 13.0 NVRTC", "libnvrtc.so.13"]);
}
