//! What the doctor reports about healthy machines, and about drivers with one fault each. The
//! drivers are a fake, compiled from `fakes/cuda.c`, whose memory travels as real file descriptors
//! between real threads and processes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use peersum_doctor::{ComputeMode, Finding, Report, Subject, Usable, Verdict};
use tempfile::TempDir;

mod fake_driver;
use fake_driver::{fake, whole_driver};

/// One run of the doctor, in surroundings of its own.
struct Visit {
    /// `TMPDIR`, and all that peersum writes.
    directory: TempDir,
    command: Command,
}

impl Visit {
    fn new() -> Visit {
        let directory = tempfile::tempdir().unwrap();
        let tmp = directory.path().join("tmp");
        fs::create_dir(&tmp).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_peersum-harness"));
        command
            .arg("doctor")
            .env("TMPDIR", tmp)
            .env(
                "PEERSUM_RENDEZVOUS_DIR",
                directory.path().join("rendezvous"),
            )
            .env("PEERSUM_CACHE_DIR", directory.path().join("jit"))
            .env("PEERSUM_JIT", "deny")
            .env_remove("PEERSUM_CUBIN_DIR")
            .env_remove("CUDA_VISIBLE_DEVICES")
            .env_remove("CUDA_DEVICE_MAX_CONNECTIONS");
        Visit { directory, command }
    }

    /// With a driver that has and lacks what `fault` says.
    fn fake(fault: &str) -> Visit {
        let mut visit = Visit::new();
        visit
            .command
            .env("LD_LIBRARY_PATH", whole_driver())
            .env("FAKE_CUDA", fault);
        visit
    }

    fn without_gpus() -> Visit {
        let mut visit = Visit::new();
        // For a machine that has some.
        visit.command.env("CUDA_VISIBLE_DEVICES", "-1");
        visit
    }

    fn args(mut self, args: &[&str]) -> Visit {
        self.command.args(args);
        self
    }

    fn output(&mut self) -> Output {
        let output = self.command.output().unwrap();
        println!("{}", String::from_utf8_lossy(&output.stdout));
        println!("{}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// The report as JSON, and the exit status, which must agree with it.
    fn report(mut self) -> Report {
        self.command.arg("--json");
        let output = self.output();
        let report: Report = serde_json::from_slice(&output.stdout).unwrap();
        let unusable = report.conclusion.usable == Usable::No;
        assert_eq!(output.status.code(), Some(i32::from(unusable)));
        assert_eq!(
            unusable,
            report.findings.iter().any(|finding| finding.blocking)
        );
        self.assert_nothing_is_left();
        report
    }

    fn assert_nothing_is_left(&self) {
        let tmp = self.directory.path().join("tmp");
        assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0, "files are left");
        let rendezvous = self.directory.path().join("rendezvous");
        let sockets = fs::read_dir(rendezvous).into_iter().flatten().count();
        assert_eq!(sockets, 0, "sockets are left");
        assert_eq!(processes_of(&tmp), [0; 0], "processes are left");
    }
}

/// Processes that were told a place below `directory`.
fn processes_of(directory: &Path) -> Vec<i32> {
    let name = directory.to_str().unwrap().as_bytes();
    let is_of_it = |pid: &i32| {
        // Empty for a process that has ended but was not waited for.
        let command_line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command_line.windows(name.len()).any(|part| part == name)
    };
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(is_of_it)
        .collect()
}

/// The only finding about `subject`.
fn only(report: &Report, subject: Subject) -> &Finding {
    let mut findings = report.about(subject);
    let finding = findings
        .next()
        .unwrap_or_else(|| panic!("nothing about {}", subject.name()));
    assert!(
        findings.next().is_none(),
        "two findings about {}",
        subject.name()
    );
    finding
}

#[test]
fn a_machine_without_a_gpu_is_told_so_and_what_still_works() {
    let report = Visit::without_gpus().report();
    assert_eq!(report.conclusion.usable, Usable::NoGpu);
    assert_eq!(only(&report, Subject::Driver).verdict, Verdict::Not);
    for subject in [
        Subject::Processes,
        Subject::Emulator,
        Subject::Rendezvous,
        Subject::JitCache,
    ] {
        let finding = only(&report, subject);
        assert_eq!(finding.verdict, Verdict::Works, "{finding}");
    }
    assert!(report.gpus.is_empty() && report.links.is_empty());
}

#[test]
fn the_text_says_what_the_json_says_and_ends_in_the_conclusion() {
    let mut visit = Visit::without_gpus();
    let output = visit.output();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let report = Visit::without_gpus().report();
    assert_eq!(text.lines().last().unwrap(), report.conclusion.text);
    for finding in &report.findings {
        let head = finding.to_string();
        // What follows may differ from run to run: the places of the two runs, free memory.
        assert!(text.contains(&head[..28]), "{head}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 160));
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
}

#[test]
fn a_misspelt_jit_mode_makes_peersum_unusable_and_is_quoted() {
    let mut visit = Visit::without_gpus();
    visit.command.env("PEERSUM_JIT", "denied");
    let report = visit.report();
    assert_eq!(report.conclusion.usable, Usable::No);
    let blocking = report
        .findings
        .iter()
        .find(|finding| finding.blocking)
        .unwrap();
    assert!(blocking.seen.contains("\"denied\""));
}

#[test]
fn a_rendezvous_directory_that_others_may_enter_is_named_with_its_mode() {
    let visit = Visit::without_gpus();
    let rendezvous = visit.directory.path().join("rendezvous");
    fs::create_dir(&rendezvous).unwrap();
    fs::set_permissions(&rendezvous, fs::Permissions::from_mode(0o755)).unwrap();
    let report = visit.report();
    let finding = only(&report, Subject::Rendezvous);
    assert!(finding.blocking);
    assert!(finding.seen.contains("755") && finding.seen.contains("rendezvous"));
}

#[test]
fn compiled_kernels_that_cannot_be_used_are_named_with_the_reason() {
    for mut visit in [Visit::without_gpus(), Visit::fake("gpus=1")] {
        let cubins = visit.directory.path().join("cubins");
        fs::create_dir(&cubins).unwrap();
        fs::write(cubins.join("manifest.json"), "{").unwrap();
        visit.command.arg("--cubins").arg(&cubins);
        let report = visit.report();
        let finding = only(&report, Subject::Cubins);
        assert_eq!(finding.verdict, Verdict::Not);
        assert!(finding.seen.contains("manifest.json"), "{finding}");
    }
}

#[test]
fn two_gpus_exchange_random_bytes_both_ways_between_threads_and_between_processes() {
    let report = Visit::fake("gpus=2").report();
    let gpu = &report.gpus[1];
    assert_eq!(gpu.uuid, "GPU-11111111-1111-1111-1111-111111111111");
    assert_eq!(gpu.pci_bus_id, "0000:1b:00.0");
    assert_eq!(
        (gpu.compute_capability.as_str(), gpu.multiprocessors),
        ("9.0", 132)
    );
    assert!(gpu.file_descriptors && !gpu.mig);
    assert_eq!(gpu.compute_mode, ComputeMode::Shared);
    let ends: Vec<(u32, u32)> = report
        .links
        .iter()
        .map(|link| (link.from, link.to))
        .collect();
    assert_eq!(ends, [(0, 1), (1, 0)]);
    for link in &report.links {
        assert!(link.access && link.native_atomics);
        assert_eq!(link.data_arrived, Some(true));
        assert!(link.gigabytes_per_second.unwrap() > 0.0);
    }
    let shared = only(&report, Subject::SharedMemory);
    assert_eq!(
        (shared.verdict, shared.gpus.as_slice()),
        (Verdict::Works, [0, 1].as_slice())
    );
    assert_eq!(only(&report, Subject::Processes).verdict, Verdict::Works);
    assert_eq!(only(&report, Subject::LegacyIpc).verdict, Verdict::Works);
    assert!(only(&report, Subject::Links).seen.contains("NVLink"));
    // There are no cubins for it, and none may be compiled: the one thing that stands in the way.
    let cubins = only(&report, Subject::Cubins);
    assert!(
        cubins.blocking
            && cubins
                .meaning
                .contains("cargo xtask precompile --arch sm_90")
    );
    assert_eq!(
        report
            .findings
            .iter()
            .filter(|finding| finding.blocking)
            .count(),
        1
    );
    assert!(report.conclusion.text.ends_with("cubins"));
}

#[test]
fn more_gpus_make_one_line_a_subject_and_every_pair_a_record() {
    let report = Visit::fake("gpus=4 pcie").report();
    assert_eq!(report.links.len(), 12);
    assert!(
        report
            .links
            .iter()
            .all(|link| link.data_arrived == Some(true))
    );
    assert!(
        only(&report, Subject::SharedMemory)
            .seen
            .contains("6 of 6 pairs")
    );
    let links = only(&report, Subject::Links);
    assert_eq!(links.verdict, Verdict::Slower);
    assert!(links.seen.contains("PCIe") && links.seen.contains("all 6 pairs"));
}

#[test]
fn data_that_does_not_arrive_is_found_although_every_call_succeeds() {
    let report = Visit::fake("gpus=2 deaf").report();
    let shared = only(&report, Subject::SharedMemory);
    assert!(shared.blocking && shared.seen.contains("did NOT arrive"));
    assert!(shared.meaning.contains("IOMMU"));
    assert!(
        report.about(Subject::Processes).next().is_none(),
        "it was tried in vain"
    );
    assert!(report.about(Subject::AllReduce).next().is_none());
}

#[test]
fn memory_that_cannot_be_mapped_falls_back_and_says_why() {
    let report = Visit::fake("gpus=2 unmappable").report();
    let shared = only(&report, Subject::SharedMemory);
    assert_eq!(shared.verdict, Verdict::Slower);
    assert!(shared.seen.contains("cuMemMap failed"), "{shared}");
    assert!(shared.meaning.contains("legacy CUDA IPC"));
    let processes = only(&report, Subject::Processes);
    assert_eq!(processes.verdict, Verdict::Not);
    assert!(processes.seen.contains("cuMemMap failed"), "{processes}");
    assert_eq!(only(&report, Subject::LegacyIpc).verdict, Verdict::Works);
}

#[test]
fn a_gpu_without_descriptors_uses_handles_and_one_without_either_is_told_apart() {
    let report = Visit::fake("gpus=1 nofd").report();
    assert_eq!(
        only(&report, Subject::SharedMemory).verdict,
        Verdict::Slower
    );
    let report = Visit::fake("gpus=1 nofd noipc").report();
    assert_eq!(only(&report, Subject::LegacyIpc).verdict, Verdict::Not);
}

#[test]
fn gpus_that_cannot_reach_each_other_are_named() {
    let report = Visit::fake("gpus=2 island").report();
    let shared = only(&report, Subject::SharedMemory);
    assert!(shared.blocking && shared.gpus == [0, 1]);
    assert!(
        shared.seen.contains("cuDeviceCanAccessPeer says no"),
        "{shared}"
    );
    assert_eq!(only(&report, Subject::Links).verdict, Verdict::Not);
}

/// What the driver or the GPU finding must say for each illness.
const ILLNESSES: [(&str, Subject, Verdict, &str); 11] = [
    ("gpus=0", Subject::Driver, Verdict::Not, "finds no GPU"),
    (
        "stub",
        Subject::Driver,
        Verdict::Not,
        "the CUDA toolkit's stub of libcuda",
    ),
    ("old", Subject::Driver, Verdict::Not, "branch 580 or newer"),
    (
        "cuda12",
        Subject::Driver,
        Verdict::Slower,
        "branch 580 or newer",
    ),
    (
        "mismatch",
        Subject::Driver,
        Verdict::Not,
        "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
    ),
    (
        "volta",
        Subject::Gpu,
        Verdict::Not,
        "compute capability 8.0 and newer",
    ),
    ("prohibited", Subject::Gpu, Verdict::Not, "-c DEFAULT"),
    ("exclusive", Subject::Gpu, Verdict::Slower, "one process"),
    (
        "mig",
        Subject::Gpu,
        Verdict::Slower,
        "MIG-10101010-1010-1010-1010-101010101010",
    ),
    ("taken", Subject::Context, Verdict::Not, "nvidia-smi"),
    (
        "gpus=1",
        Subject::Environment,
        Verdict::Slower,
        "CUDA_DEVICE_MAX_CONNECTIONS=32",
    ),
];

#[test]
fn each_illness_of_a_driver_or_gpu_is_a_finding_that_says_what_to_do() {
    for (fault, subject, verdict, says) in ILLNESSES {
        let report = Visit::fake(fault).report();
        let finding = only(&report, subject);
        assert_eq!(finding.verdict, verdict, "{fault}: {finding}");
        let text = format!("{} {}", finding.seen, finding.meaning);
        assert!(text.contains(says), "{fault}: {finding}");
    }
}

#[test]
fn no_result_of_a_driver_s_function_is_ignored() {
    // Attributes by their number: multiprocessors, compute mode, compute capability, memory by
    // descriptor.
    for function in [
        "cuDriverGetVersion",
        "cuInit",
        "cuDeviceGetCount",
        "cuDeviceGet",
        "cuDeviceGetName",
        "cuDeviceGetUuid",
        "cuDeviceGetPCIBusId",
        "cuDeviceTotalMem_v2",
        "cuDeviceGetP2PAttribute",
        "16",
        "20",
        "75",
        "102",
        "103",
    ] {
        let report = Visit::fake(&format!("gpus=2 fails:{function}")).report();
        let says = match function {
            "cuDeviceTotalMem_v2" => "cuDeviceTotalMem",
            function if function.starts_with("cu") => function,
            _ => "cuDeviceGetAttribute",
        };
        let named = report.findings.iter().any(|finding| {
            finding.blocking
                && finding.seen.contains(&format!("{says} failed"))
                && finding.seen.contains("CUDA_ERROR_OF_A_FAKE")
        });
        assert!(named, "{function}: {report}");
        assert!(!report.to_string().contains("CUDA 0.0"), "{report}");
    }
}

#[test]
fn the_toolkit_s_stub_is_no_driver_that_wants_an_update() {
    let report = Visit::fake("stub").report();
    let driver = only(&report, Subject::Driver);
    assert!(driver.blocking && driver.meaning.contains("LD_LIBRARY_PATH"));
    assert!(!driver.to_string().contains("0.0"), "{driver}");
    assert!(!driver.meaning.contains("update"), "{driver}");
}

#[test]
fn a_driver_that_lacks_functions_is_named_with_them_and_nothing_panics() {
    let mut visit = Visit::fake("gpus=1");
    visit
        .command
        .env("LD_LIBRARY_PATH", fake("incomplete-cuda", "-DINCOMPLETE"));
    let report = visit.report();
    let driver = only(&report, Subject::Driver);
    assert!(driver.blocking);
    assert!(
        driver
            .seen
            .contains("lacks cuStreamBeginCapture_v2, cuStreamEndCapture")
    );
}

#[test]
fn a_driver_that_hangs_ends_in_a_finding() {
    let began = Instant::now();
    let report = Visit::fake("gpus=2 hang")
        .args(&["--patience", "5"])
        .report();
    let mut blocking = report.findings.iter().filter(|finding| finding.blocking);
    assert!(blocking.any(|finding| finding.seen.contains("no answer within 5 s")));
    assert!(report.about(Subject::SharedMemory).next().is_none());
    // Far more than it takes on a busy machine; without a bound it would be for ever.
    assert!(began.elapsed() < Duration::from_secs(120));
}

#[test]
fn another_process_that_hangs_is_ended_and_named() {
    let report = Visit::fake("gpus=1 peerhangs")
        .args(&["--patience", "15"])
        .report();
    assert_eq!(only(&report, Subject::SharedMemory).verdict, Verdict::Works);
    let processes = only(&report, Subject::Processes);
    assert_eq!(processes.verdict, Verdict::Not);
    assert!(processes.seen.contains("rank 1"), "{processes}");
    // That one does not hang.
    assert_eq!(only(&report, Subject::LegacyIpc).verdict, Verdict::Works);
}

#[test]
fn the_other_process_does_not_outlive_a_doctor_that_is_killed() {
    let mut visit = Visit::fake("gpus=1 peerhangs").args(&["--patience", "600"]);
    let tmp = visit.directory.path().join("tmp");
    let mut doctor = visit.command.spawn().unwrap();
    let eventually = |what: &str, condition: &dyn Fn() -> bool| {
        let began = Instant::now();
        while !condition() {
            assert!(
                began.elapsed() < Duration::from_secs(120),
                "{what} did not come true"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    eventually("another process", &|| !processes_of(&tmp).is_empty());
    doctor.kill().unwrap();
    doctor.wait().unwrap();
    eventually("its end", &|| processes_of(&tmp).is_empty());
}

#[test]
fn an_old_gpu_is_refused_by_the_test_commands_before_anything_is_compiled_for_it() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peersum-harness"));
    command
        .args(["device", "--device", "cuda"])
        .env("LD_LIBRARY_PATH", whole_driver())
        .env("FAKE_CUDA", "gpus=1 volta");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && !said.contains("panicked"),
        "{said}"
    );
    for word in ["GPU 0", "sm_80 and newer", "--device emulator"] {
        assert!(said.contains(word), "{said}");
    }
}
