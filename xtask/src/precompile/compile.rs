//! One job: from a module's source to PTX once, and from there to its files.

use super::command::{assemble_command, nvcc_command, shown};
use super::inputs::Inputs;
use super::ptx_entries::{PtxEntry, ptx_entries};
use crate::output::Staging;
use crate::toolchain::Nvcc;
use anyhow::{Context as _, bail, ensure};
use fs_err as fs;
use peersum_artifact::{
    Arch, Digest, EntryPoint, ManifestModule, ModuleKey, PtxasReport, Target, inspect_ptx,
    verify_bytes,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// The files of one module that are made from the same PTX.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) module: ModuleKey,
    /// The architecture of the PTX.
    pub(crate) ptx_arch: Arch,
    /// What is made, and the key that each file is stored under.
    pub(crate) files: Vec<(Target, Digest)>,
}

/// Why a module was not built.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Failure {
    /// The command as it can be pasted into a shell.
    pub(crate) command: String,
    /// What happened, in one line.
    pub(crate) message: String,
    /// All that the compiler wrote to stdout and stderr.
    pub(crate) output: String,
}

/// The result of a process that succeeded.
#[derive(Debug)]
pub(crate) struct Compiled {
    /// The manifest entries of the files, which lie in the staging area.
    pub(crate) modules: Vec<ManifestModule>,
    /// The compiler's warnings.
    pub(crate) remarks: Vec<String>,
}

impl Job {
    /// Module and targets in one word, for messages and directories:
    /// `peersum_push_bf16_ws8.sm_100+sm_120`. PTX is named only if no cubin is made.
    pub(crate) fn label(&self) -> String {
        let cubins: Vec<String> = self.cubins().map(|target| target.to_string()).collect();
        match cubins.is_empty() {
            true => format!("{}.{}", self.module, Target::Ptx(self.ptx_arch)),
            false => format!("{}.{}", self.module, cubins.join("+")),
        }
    }

    fn cubins(&self) -> impl Iterator<Item = Target> {
        let targets = self.files.iter().map(|&(target, _)| target);
        targets.filter(|target| matches!(target, Target::Cubin(_)))
    }

    /// The target of the process that reads the source: the cubin of the PTX's architecture if it
    /// is asked for, since its PTX is kept.
    fn first_target(&self) -> Target {
        let cubin = Target::Cubin(self.ptx_arch);
        match self.cubins().any(|target| target == cubin) {
            true => cubin,
            false => Target::Ptx(self.ptx_arch),
        }
    }

    /// Runs the compiler in a directory of its own and puts the files, verified, into the staging
    /// area.
    ///
    /// # Errors
    /// The compiler's failure, spilled registers unless they are allowed, or a file that cannot be
    /// written.
    pub(crate) fn run(
        &self,
        nvcc: &Nvcc,
        inputs: &Inputs,
        staging: &Staging,
    ) -> Result<Compiled, Failure> {
        let mut failure = Failure::default();
        self.compile(nvcc, inputs, staging, &mut failure)
            .map_err(|error| Failure {
                message: format!("{error:#}"),
                ..failure
            })
    }

    fn compile(
        &self,
        nvcc: &Nvcc,
        inputs: &Inputs,
        staging: &Staging,
        failure: &mut Failure,
    ) -> anyhow::Result<Compiled> {
        let scratch = staging.scratch(&self.label())?;
        let first = self.first_target();
        let command = nvcc_command(nvcc, inputs, self.module, first, &scratch)?;
        let mut reports =
            BTreeMap::from([(first, run_compiler(command, inputs.allow_spills, failure)?)]);
        let ptx = match first {
            Target::Ptx(_) => scratch.join(first.file_name(&self.module)),
            Target::Cubin(_) => kept_ptx(&scratch)?,
        };
        for target in self.cubins().filter(|target| *target != first) {
            let command = assemble_command(nvcc, inputs, self.module, &ptx, target, &scratch)?;
            reports.insert(target, run_compiler(command, inputs.allow_spills, failure)?);
        }
        // The compiler succeeded, so only its warnings may explain a failure.
        let remarks = reports.values().flat_map(|report| &report.remarks);
        let spills = reports.values().filter_map(spills);
        let remarks: Vec<String> = remarks.cloned().chain(spills).collect();
        failure.output = remarks.join("\n");
        let modules = self.collect(&ptx, &scratch, &reports, inputs, staging)?;
        // The rest of the matrix needs the disk space. If it cannot be removed now, it goes with
        // the staging area.
        let _ = fs::remove_dir_all(&scratch);
        Ok(Compiled { modules, remarks })
    }

    /// Reads what the compiler wrote, checks it as a loader would, and stages it.
    fn collect(
        &self,
        ptx: &Path,
        scratch: &Path,
        reports: &BTreeMap<Target, PtxasReport>,
        inputs: &Inputs,
        staging: &Staging,
    ) -> anyhow::Result<Vec<ManifestModule>> {
        let ptx = fs::read_to_string(ptx)?;
        let version = inspect_ptx(ptx.as_bytes())
            .context("the compiler wrote bad PTX")?
            .version;
        let entries = ptx_entries(&ptx);
        let closure = inputs
            .closure(&self.module)
            .context("a module whose sources were not read")?;
        let mut modules = Vec::new();
        for &(target, cache_key) in &self.files {
            let file = target.file_name(&self.module);
            let (bytes, ptx_version, report) = match target {
                Target::Ptx(_) => (ptx.clone().into_bytes(), Some(version), None),
                Target::Cubin(_) => (fs::read(scratch.join(&file))?, None, reports.get(&target)),
            };
            let module = ManifestModule {
                key: self.module,
                target,
                ptx_version,
                bytes: bytes.len() as u64,
                sha256: Digest::of(&bytes),
                closure_digest: closure.digest,
                cache_key,
                entry_points: self.entry_points(report, &entries)?,
            };
            verify_bytes(&bytes, &module)
                .context("the compiler's output is not what was asked for")?;
            staging.write(&file, &bytes)?;
            modules.push(module);
        }
        Ok(modules)
    }

    /// `report` is that of a cubin.
    fn entry_points(
        &self,
        report: Option<&PtxasReport>,
        entries: &BTreeMap<String, PtxEntry>,
    ) -> anyhow::Result<Vec<EntryPoint>> {
        self.module
            .entry_points()
            .into_iter()
            .map(|name| {
                let ptx = entries.get(&name).with_context(|| {
                    format!(
                        "`{}` has no entry point `{name}`",
                        self.module.source_root()
                    )
                })?;
                let resources = report.map(|report| {
                    let resources = report.functions.get(&name).copied();
                    resources.with_context(|| format!("ptxas reported nothing on `{name}`"))
                });
                Ok(EntryPoint {
                    name,
                    resources: resources.transpose()?,
                    max_threads: ptx.max_threads,
                    pdl: ptx.waits_for_predecessor,
                })
            })
            .collect()
    }
}

/// Which functions spill registers, in a line.
fn spills(report: &PtxasReport) -> Option<String> {
    let spills: Vec<String> = report
        .spills()
        .map(|(name, bytes)| format!("`{name}` {bytes} bytes"))
        .collect();
    (!spills.is_empty()).then(|| format!("registers spill to memory in {}", spills.join(", ")))
}

/// Runs one compiler process. Refuses code that spills registers unless that is allowed.
///
/// Fills in the command and the output of `failure` as soon as they are known.
fn run_compiler(
    mut command: Command,
    allow_spills: bool,
    failure: &mut Failure,
) -> anyhow::Result<PtxasReport> {
    failure.command = shown(&command);
    let output = command
        .output()
        .with_context(|| format!("cannot start `{}`", command.get_program().display()))?;
    // Both streams, for nothing that nvcc prints may be lost.
    let text = [output.stdout, output.stderr].concat();
    failure.output = String::from_utf8_lossy(&text).into_owned();
    let status = output.status;
    ensure!(status.success(), "nvcc failed: {}", ending(status));
    let report = PtxasReport::parse(&failure.output);
    if let (false, Some(spills)) = (allow_spills, spills(&report)) {
        bail!("{spills}; lower the launch bounds of this world size or hold less in registers");
    }
    Ok(report)
}

fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        // As a shell reports SIGBUS and SIGSEGV: some of nvcc's tools crash on a full disk.
        (Some(code @ (135 | 139)), _) => {
            format!("exit status {code} (a tool of nvcc crashed; is the disk full?)")
        }
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(9)) => {
            "killed by signal 9 (is the machine out of memory? try fewer --jobs)".to_owned()
        }
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// The PTX that nvcc kept. Its name depends on the release, so it is found as the only file of its
/// kind.
fn kept_ptx(scratch: &Path) -> anyhow::Result<PathBuf> {
    for entry in fs::read_dir(scratch)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "ptx") {
            return Ok(path);
        }
    }
    bail!("nvcc kept no PTX of the module")
}
