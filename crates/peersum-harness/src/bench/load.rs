//! `bench load`: what the first use of a module costs, from each place that a module comes from.
//!
//! A process parses a manifest once and loads NVRTC once, so each place is measured in processes of its own: the module that
//! is loaded first stands apart from the others. Where there is a GPU, each load is set beside `cuModuleLoadData` of the same
//! bytes.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use peersum::Cuda;
use peersum::cuda::driver_present;
use peersum::cudarc::driver::sys;
use peersum::device::Device;
use peersum::loader::{DeviceTarget, JitMode, KernelSet, LoadPolicy, LoadedImage, Place};
use peersum_artifact::{Arch, ModuleKey, pack};
use serde::{Deserialize, Serialize};

use super::timing::median;

/// What `bench load` measures.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct LoadArgs {
    /// The directory of cubins, which the pack is made from as well.
    #[arg(long, default_value = "target/cubins")]
    cubins: PathBuf,
    /// The NVRTC to compile with [default: the one that the loader finds].
    #[arg(long)]
    nvrtc: Option<PathBuf>,
    /// The architecture to load for [default: the GPU's, else sm_90].
    #[arg(long, value_parser = parse_arch)]
    arch: Option<Arch>,
    /// Processes for each place; NVRTC, which is slow, gets one.
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Writes one JSON object a load and line.
    #[arg(long)]
    json: Option<PathBuf>,
    /// What a process of its own measures.
    #[arg(long, hide = true, requires = "cache")]
    only: Option<Source>,
    /// The directory of its JIT cache.
    #[arg(long, hide = true)]
    cache: Option<PathBuf>,
}

fn parse_arch(text: &str) -> Result<Arch, String> {
    text.strip_prefix("sm_")
        .unwrap_or(text)
        .parse()
        .map_err(|error| format!("{error}"))
}

/// Where modules come from.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
enum Source {
    Directory,
    Pack,
    /// Fills the cache.
    Nvrtc,
    Cache,
}

impl Source {
    const ALL: [Self; 4] = [Self::Directory, Self::Pack, Self::Nvrtc, Self::Cache];

    fn title(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::Pack => "pack",
            Self::Nvrtc => "NVRTC",
            Self::Cache => "JIT cache",
        }
    }

    /// The most that a load may take, the driver's part not counted.
    fn goal(self) -> Duration {
        Duration::from_millis(match self {
            Self::Directory | Self::Pack => 1,
            Self::Cache => 2,
            Self::Nvrtc => 120,
        })
    }
}

/// One load. Times are in microseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Load {
    source: Source,
    module: String,
    /// The first of its process.
    first: bool,
    /// From the call to the verified bytes; for NVRTC the compilation alone.
    loader_us: f64,
    /// The loading of NVRTC, in the process's first compilation.
    library_us: Option<f64>,
    /// `cuModuleLoadData` of the same bytes.
    driver_us: Option<f64>,
    /// The loader and the device's own loading together: what a communicator's set-up spends on the module.
    whole_us: Option<f64>,
}

impl Load {
    /// What peersum adds to `cuModuleLoadData`.
    fn added_us(&self) -> f64 {
        match (self.whole_us, self.driver_us) {
            (Some(whole), Some(driver)) => whole - driver,
            _ => self.loader_us,
        }
    }
}

/// Runs the benchmark, or the part of it that a process of its own measures.
pub(crate) fn run(args: &LoadArgs) -> Result<()> {
    if let (Some(source), Some(cache)) = (args.only, &args.cache) {
        return measure(args, source, cache);
    }
    let gpu = Gpu::open()?;
    let arch = args.arch.or(gpu.as_ref().map(|gpu| gpu.arch));
    if let Some(gpu) = &gpu {
        ensure!(
            arch == Some(gpu.arch),
            "--arch is not GPU 0's sm_{}: what is loaded here could not be handed to it",
            gpu.arch
        );
    }
    println!(
        "# {}; {} processes a place, sm_{}, microseconds",
        gpu.as_ref()
            .map_or("no GPU: the loader alone", |gpu| &gpu.name),
        args.runs,
        arch.unwrap_or(DEFAULT_ARCH)
    );
    drop(gpu);
    // The loader makes the directory itself, closed to others.
    let cache = tempfile::tempdir().context("making a place for the JIT cache")?;
    let mut loads = Vec::new();
    for source in Source::ALL {
        let runs = if source == Source::Nvrtc {
            1
        } else {
            args.runs
        };
        for _ in 0..runs {
            match in_own_process(args, arch, source, &cache.path().join("jit"))? {
                Some(measured) => loads.extend(measured),
                None => break,
            }
        }
    }
    print_table(&loads);
    if let Some(path) = &args.json {
        let mut file = std::fs::File::create(path).context("creating the JSON file")?;
        for load in &loads {
            writeln!(file, "{}", serde_json::to_string(load)?)?;
        }
    }
    Ok(())
}

/// Measures one place in a fresh process. `None` if it cannot be had here, which the process has said.
fn in_own_process(
    args: &LoadArgs,
    arch: Option<Arch>,
    source: Source,
    cache: &Path,
) -> Result<Option<Vec<Load>>> {
    let mut command = Command::new(std::env::current_exe().context("finding this program")?);
    command.args([
        "bench-load",
        "--only",
        clap_name(source).as_str(),
        "--cubins",
    ]);
    command.arg(&args.cubins).arg("--cache").arg(cache);
    if let Some(nvrtc) = &args.nvrtc {
        command.arg("--nvrtc").arg(nvrtc);
    }
    if let Some(arch) = arch {
        command.arg("--arch").arg(arch.to_string());
    }
    let output = command
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("starting the measuring process")?;
    // A machine without NVRTC is no failure of the benchmark; a directory that cannot be loaded is.
    if !output.status.success() && matches!(source, Source::Nvrtc | Source::Cache) {
        println!("{}: not measured, see above", source.title());
        return Ok(None);
    }
    ensure!(
        output.status.success(),
        "{}: the measuring process ended with {}",
        source.title(),
        output.status
    );
    let text = String::from_utf8(output.stdout).context("reading the measurements")?;
    let loads = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .context("reading the measurements")?;
    Ok(Some(loads))
}

fn clap_name(source: Source) -> String {
    use clap::ValueEnum;
    source
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

const DEFAULT_ARCH: Arch = Arch::plain(9, 0);

/// What a process of its own does: loads every module from one place and prints a line for each.
fn measure(args: &LoadArgs, source: Source, cache: &Path) -> Result<()> {
    let gpu = Gpu::open()?;
    let target = DeviceTarget {
        arch: args.arch.unwrap_or(DEFAULT_ARCH),
        driver_version: None,
    };
    let ahead_of_time = LoadPolicy::default().jit(JitMode::Deny);
    let compiled_here = match &args.nvrtc {
        Some(library) => LoadPolicy::default().nvrtc_library(library),
        None => LoadPolicy::from_env()?,
    }
    .jit(JitMode::Force)
    .cache_dir(cache);
    let mut kernels = KernelSet::embedded();
    let packed;
    let policy = match source {
        Source::Directory => ahead_of_time.cubin_dir(&args.cubins),
        Source::Pack => {
            packed = pack::pack_directory(&args.cubins)?;
            kernels.pack = &packed;
            ahead_of_time
        }
        Source::Nvrtc | Source::Cache => compiled_here,
    };
    if let Some(gpu) = &gpu {
        gpu.warm_up(&args.cubins, target.arch)?;
    }
    // A pack that is not the build's own cannot be given to the device; a compilation would be done twice.
    let whole = matches!(source, Source::Directory | Source::Cache);
    for (index, key) in ModuleKey::all().enumerate() {
        // First, so that it is the first use.
        let whole_us = match &gpu {
            Some(gpu) if whole => Some(gpu.whole_us(&policy, key)?),
            _ => None,
        };
        let start = Instant::now();
        let image = peersum::loader::load_from(&policy, &kernels, key, &target)?;
        let loader = start.elapsed();
        check_origin(source, &image)?;
        let (loader, library) = match &image.report.compilation {
            Some(compilation) => (
                compilation.compile,
                Some(compilation.library_load).filter(|library| !library.is_zero()),
            ),
            None => (loader, None),
        };
        let driver_us = gpu.as_ref().map(|gpu| gpu.bare_us(&image)).transpose()?;
        let load = Load {
            source,
            module: key.name(),
            first: index == 0,
            loader_us: microseconds(loader),
            library_us: library.map(microseconds),
            driver_us,
            whole_us,
        };
        println!("{}", serde_json::to_string(&load)?);
    }
    Ok(())
}

/// A benchmark of the cache must not time a compilation.
fn check_origin(source: Source, image: &LoadedImage) -> Result<()> {
    let as_meant = match &image.report.place {
        Place::Directory(_) => source == Source::Directory,
        Place::Pack => source == Source::Pack,
        Place::Nvrtc => source == Source::Nvrtc,
        Place::JitCache(_) => source == Source::Cache,
        Place::Sources | Place::EnvDirectory(_) | Place::Ptx(_) => false,
    };
    ensure!(
        as_meant,
        "not from the {}: {}",
        source.title(),
        image.report
    );
    Ok(())
}

fn print_table(loads: &[Load]) {
    println!(
        "{:<10} {:>7}  {:>9} {:>9} {:>9}  {:>9} {:>9}  {:>9} {:>9}  {:>7}",
        "", "", "loader", "", "", "driver", "", "added", "", "goal"
    );
    println!(
        "{:<10} {:>7}  {:>9} {:>9} {:>9}  {:>9} {:>9}  {:>9} {:>9}  {:>7}",
        "place", "modules", "first", "median", "max", "first", "median", "first", "max", "added"
    );
    let mut by_source: BTreeMap<Source, Vec<&Load>> = BTreeMap::new();
    for load in loads {
        by_source.entry(load.source).or_default().push(load);
    }
    for (source, loads) in by_source {
        let (first, later): (Vec<&Load>, Vec<&Load>) = loads.iter().partition(|load| load.first);
        let values = |loads: &[&Load], of: fn(&Load) -> Option<f64>| -> Vec<f64> {
            loads.iter().filter_map(|load| of(load)).collect()
        };
        let loader = |load: &Load| Some(load.loader_us);
        let driver = |load: &Load| load.driver_us;
        let added = |load: &Load| Some(load.added_us());
        let added_max = greatest(&values(&later, added));
        let goal = microseconds(source.goal());
        // What a machine with other work adds to single loads says nothing of the loader: medians are held against the goal.
        let met = median(&values(&first, added)) <= goal && median(&values(&later, added)) <= goal;
        println!(
            "{:<10} {:>7}  {:>9} {:>9} {:>9}  {:>9} {:>9}  {:>9} {:>9}  {:>7} {}",
            source.title(),
            later.len() / first.len().max(1) + 1,
            cell(median(&values(&first, loader))),
            cell(median(&values(&later, loader))),
            cell(greatest(&values(&later, loader))),
            cell(median(&values(&first, driver))),
            cell(median(&values(&later, driver))),
            cell(median(&values(&first, added))),
            cell(added_max),
            cell(goal),
            if met { "met" } else { "MISSED" },
        );
        if let Some(library) = loads.iter().find_map(|load| load.library_us) {
            println!("           the loading of NVRTC itself: {}", cell(library));
        }
    }
    println!(
        "# first: the median over processes of the first module; median, max: all modules after it.\n\
         # driver: cuModuleLoadData of the same bytes. added: a whole load less that, or the loader alone where there is no\n\
         # whole load to time. NVRTC: the compilation alone."
    );
}

fn cell(us: f64) -> String {
    if us.is_finite() {
        format!("{us:.0}")
    } else {
        "-".to_owned()
    }
}

fn greatest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NAN, f64::max)
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// The first GPU, where there is one.
struct Gpu {
    device: Cuda,
    arch: Arch,
    name: String,
}

impl Gpu {
    fn open() -> Result<Option<Self>> {
        if driver_present().is_err() {
            return Ok(None);
        }
        let context = peersum::open_context(0)?;
        let stream = context.new_stream()?;
        let device = Cuda::open(&stream)?;
        let identity = device.identity()?;
        let arch = identity
            .cubin_arch()
            .context("GPU 0 does not say its architecture")?;
        Ok(Some(Self {
            device,
            arch,
            name: identity.name,
        }))
    }

    /// Loads a module that counts for nothing: the driver sets itself up at the first one.
    fn warm_up(&self, cubins: &Path, arch: Arch) -> Result<()> {
        let manifest = peersum_artifact::Manifest::read_dir(cubins)?;
        let key = ModuleKey::all().last().context("there is no module")?;
        let module = manifest
            .find_for(key, arch)
            .with_context(|| format!("{} has no {key} for sm_{arch}", cubins.display()))?;
        let bytes = peersum_artifact::verify_file(cubins, module)?;
        load_data(&bytes).map(drop)
    }

    /// A module's way onto the device as a communicator goes it, in microseconds.
    fn whole_us(&self, policy: &LoadPolicy, key: ModuleKey) -> Result<f64> {
        let start = Instant::now();
        let loaded = self.device.load(policy, key)?;
        let took = start.elapsed();
        drop(loaded);
        Ok(microseconds(took))
    }

    /// `cuModuleLoadData` alone, in microseconds.
    fn bare_us(&self, image: &LoadedImage) -> Result<f64> {
        load_data(&image.bytes).map(microseconds)
    }
}

/// Loads verified bytes into the current context and unloads them again. Returns how long the loading took.
fn load_data(bytes: &[u8]) -> Result<Duration> {
    let mut module = std::ptr::null_mut();
    let start = Instant::now();
    // SAFETY: a whole cubin, verified by the loader, or PTX that it has ended in NUL; `module` is a place for one handle.
    let loaded = unsafe { sys::cuModuleLoadData(&raw mut module, bytes.as_ptr().cast::<c_void>()) };
    let took = start.elapsed();
    loaded.result().context("cuModuleLoadData")?;
    // SAFETY: loaded just now, and nothing of it is in use.
    unsafe { sys::cuModuleUnload(module) }
        .result()
        .context("cuModuleUnload")?;
    Ok(took)
}
