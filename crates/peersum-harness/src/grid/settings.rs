//! The settings of a run: the flags, and the resolved form that workers get.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use peersum::device::MemorySharing;
use peersum::dispatch::Route;
use peersum_artifact::Dtype;
use serde::{Deserialize, Serialize};

use super::case::Filter;
use crate::machine::{DeviceChoice, DeviceKind};
use crate::names::name_of;

/// What a rank is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RankKind {
    /// A thread of one process.
    Threads,
    /// A process.
    Processes,
}

/// Which configurations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum GridKind {
    /// Small sizes and few rounds: every module, every kind of call.
    Smoke,
    /// Sizes from 16 to 4194304 elements, 16 rounds.
    Full,
    /// A few small sizes, one round, small launches: small enough for a slow sanitizer.
    Sanitizer,
}

/// How the ranks share memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SharingChoice {
    /// File descriptors if the device supports them, otherwise legacy IPC.
    #[default]
    Auto,
    /// File descriptors of the driver's virtual memory management.
    FileDescriptor,
    /// Legacy CUDA IPC; between threads, addresses.
    LegacyIpc,
}

/// The flags of `grid`, which `cargo xtask test-allreduce` passes on.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct GridArgs {
    /// World sizes: a number, a range such as 2..8 (inclusive), or a list of these. A group of one
    /// launches nothing, so world size 1 has no configurations.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "2..8",
        value_parser = parse_world_sizes
    )]
    pub(crate) world_size: Vec<RangeInclusive<u32>>,
    /// Element types.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "f16,bf16,f32"
    )]
    pub(crate) dtype: Vec<Dtype>,
    /// Algorithms: `push_one_shot`, `push_two_shot`, `pull_one_shot` and `pull_two_shot` (both with
    /// staged and with symmetric input), `symmetric_one_shot`, `symmetric_two_shot`, or `all`.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "all",
        value_parser = parse_routes
    )]
    pub(crate) algo: Vec<Routes>,
    /// What the ranks run on.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) device: DeviceChoice,
    /// What a rank is.
    #[arg(long, value_enum, default_value = "threads")]
    pub(crate) ranks: RankKind,
    /// Which configurations.
    #[arg(long, value_enum, default_value = "smoke")]
    pub(crate) grid: GridKind,
    /// How the ranks share memory.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) sharing: SharingChoice,
    /// The seed of all data, sizes and delays [default: random]. Every report contains it.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Run only configurations whose name matches: `ws4/bf16/push_one_shot/1040/eager/aligned`,
    /// `ws4/*/pull_two_shot`, `adversarial`.
    #[arg(long, value_name = "CASE")]
    pub(crate) filter: Option<Filter>,
    /// Print the names of the configurations and run none.
    #[arg(long)]
    pub(crate) list: bool,
    /// Write a report in JSON.
    #[arg(long, value_name = "FILE.json")]
    pub(crate) report: Option<PathBuf>,
    /// Maximum time that a call waits for a peer, in seconds. If no rank reports anything for this
    /// time plus 15 seconds, the run ends.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 20,
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    pub(crate) timeout: u64,
    /// The time that precompiling took, in seconds, for the report.
    #[arg(long, hide = true)]
    pub(crate) precompile_seconds: Option<f64>,
    /// For tests: `kill:RANK:CASE`, `hang:`, `exit:` or `corrupt:` likewise, where CASE is a name.
    #[arg(long, hide = true, value_name = "FAULT")]
    pub(crate) inject: Option<Fault>,
}

/// The settings of a run that every rank gets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) world_sizes: Vec<u32>,
    pub(crate) dtypes: Vec<Dtype>,
    pub(crate) routes: Vec<Route>,
    pub(crate) device: DeviceKind,
    pub(crate) ranks: RankKind,
    pub(crate) grid: GridKind,
    pub(crate) sharing: SharingChoice,
    pub(crate) seed: u64,
    pub(crate) filter: Option<Filter>,
    pub(crate) timeout: Duration,
    pub(crate) fault: Option<Fault>,
    /// The initial values of the call counters: for push, and for pull (at least 1).
    pub(crate) start_epochs: (u32, u64),
}

/// A fault that a test asks a rank to commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    pub(crate) rank: u32,
    pub(crate) case: String,
}

/// What the rank does at the beginning of the case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(crate) enum FaultKind {
    /// Kills itself.
    Kill,
    /// Hangs.
    Hang,
    /// Exits with status 0 before it is done.
    Exit,
    /// Changes one bit of a result before it is compared on the host: the second element, in round
    /// 1, layer 2.
    Corrupt,
}

impl std::str::FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(3, ':');
        let mut parse = || {
            Some(Fault {
                kind: FaultKind::from_str(parts.next()?, false).ok()?,
                rank: parts.next()?.parse().ok()?,
                case: parts.next()?.to_owned(),
            })
        };
        parse().ok_or_else(|| {
            format!("`{text}` is not kill:RANK:CASE, or hang, exit or corrupt likewise")
        })
    }
}

impl Settings {
    /// All configurations of a grid by ranks that are threads.
    pub(crate) fn of(
        device: DeviceKind,
        grid: GridKind,
        world_sizes: Vec<u32>,
        seed: u64,
    ) -> Settings {
        Settings {
            world_sizes,
            dtypes: Dtype::ALL.to_vec(),
            routes: Route::ALL.to_vec(),
            device,
            ranks: RankKind::Threads,
            grid,
            sharing: SharingChoice::Auto,
            seed,
            filter: None,
            timeout: Duration::from_secs(1),
            fault: None,
            start_epochs: (0, 1),
        }
    }

    /// Resolves the flags. `device` is what `--device` came to.
    pub(crate) fn new(args: &GridArgs, device: DeviceKind) -> Settings {
        let seed = args.seed.unwrap_or_else(|| u64::from(fastrand::u32(..)));
        let mut dtypes = Dtype::ALL.to_vec();
        dtypes.retain(|dtype| args.dtype.contains(dtype));
        let mut routes = Route::ALL.to_vec();
        routes.retain(|route| args.algo.iter().flatten().any(|chosen| chosen == route));
        Settings {
            dtypes,
            routes,
            ranks: args.ranks,
            sharing: args.sharing,
            filter: args.filter.clone(),
            timeout: Duration::from_secs(args.timeout),
            fault: args.inject.clone(),
            ..Settings::of(device, args.grid, world_sizes(&args.world_size), seed)
        }
    }

    /// How the ranks share memory.
    pub(crate) fn sharing(&self) -> MemorySharing {
        match (self.sharing, self.device, self.grid, self.ranks) {
            (SharingChoice::FileDescriptor, ..) => MemorySharing::FileDescriptor,
            (SharingChoice::LegacyIpc, ..) => MemorySharing::LegacyIpc,
            // One address for all ranks: initcheck tracks written addresses and does not know that
            // two addresses can map the same memory.
            (_, DeviceKind::Cuda, GridKind::Sanitizer, RankKind::Threads) => {
                MemorySharing::LegacyIpc
            }
            _ => MemorySharing::Auto,
        }
    }

    /// The command that runs one configuration again with the same data.
    pub(crate) fn reproduce(&self, case: &str) -> String {
        let mut command = format!(
            "cargo xtask test-allreduce --device {} --ranks {} --grid {} --seed {}",
            self.device.name(),
            name_of(&self.ranks),
            name_of(&self.grid),
            self.seed
        );
        if self.sharing != SharingChoice::Auto {
            command += &format!(" --sharing {}", name_of(&self.sharing));
        }
        // Both decide which calls an adversarial case makes.
        if self.routes.len() < Route::ALL.len() {
            let routes: Vec<&str> = self.routes.iter().map(|route| route.name()).collect();
            command += &format!(" --algo {}", routes.join(","));
        }
        if self.dtypes.len() < Dtype::ALL.len() {
            let dtypes: Vec<String> = self.dtypes.iter().map(Dtype::to_string).collect();
            command += &format!(" --dtype {}", dtypes.join(","));
        }
        command + &format!(" --filter {case}")
    }
}

/// Parses a number or a range such as `2..8` (inclusive).
pub(crate) fn parse_world_sizes(text: &str) -> Result<RangeInclusive<u32>> {
    let number = |text: &str| {
        let size = text.trim().parse().ok();
        size.filter(|size| (1..=8).contains(size))
    };
    let (first, last) = text.split_once("..").unwrap_or((text, text));
    number(first)
        .zip(number(last.trim_start_matches('=')))
        .map(|(first, last)| first..=last)
        .filter(|sizes| !sizes.is_empty())
        .context("1 to 8 are possible, or a range such as 2..8")
}

/// The world sizes that launch something, in order.
pub(crate) fn world_sizes(chosen: &[RangeInclusive<u32>]) -> Vec<u32> {
    let is_chosen = |size: &u32| chosen.iter().any(|sizes| sizes.contains(size));
    (2..=8).filter(is_chosen).collect()
}

/// The routes of one name.
pub(crate) type Routes = Vec<Route>;

fn parse_routes(name: &str) -> Result<Routes> {
    let symmetric = name.replace("pull_", "symmetric_");
    let mut routes = Route::ALL.to_vec();
    routes.retain(|route| name == "all" || [name, &symmetric].contains(&route.name()));
    let names = Route::ALL.map(Route::name).join(", ");
    ensure!(!routes.is_empty(), "there are {names} and all");
    Ok(routes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn world_sizes_are_numbers_ranges_and_lists() {
        let sizes = |list: &str| -> Result<Vec<u32>> {
            let ranges: Result<Vec<_>> = list.split(',').map(parse_world_sizes).collect();
            Ok(world_sizes(&ranges?))
        };
        assert_eq!(sizes("1..8").unwrap(), [2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(sizes("8,2..=3,2").unwrap(), [2, 3, 8]);
        for bad in ["0", "9", "4..2", "", "two", "2.."] {
            assert!(sizes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pull_algorithm_means_staged_and_symmetric() {
        let routes = parse_routes("pull_one_shot").unwrap();
        assert_eq!(routes, [Route::PullOneShot, Route::SymmetricOneShot]);
        assert_eq!(parse_routes("all").unwrap(), Route::ALL);
        let error = parse_routes("ring").unwrap_err().to_string();
        assert!(error.contains("push_one_shot"), "{error}");
    }
}
