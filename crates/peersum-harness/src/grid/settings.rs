//! The settings of a run: the flags, and the resolved form that workers get.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
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
    /// World sizes: a number, a range such as 2..8 (inclusive), or a list of these.
    #[arg(long, value_name = "LIST", default_value = "2..8")]
    pub(crate) world_size: String,
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
        default_value = "all"
    )]
    pub(crate) algo: Vec<String>,
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
    #[arg(long, value_name = "SECONDS", default_value_t = 20.0)]
    pub(crate) timeout: f64,
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
        let malformed =
            || format!("`{text}` is not kill:RANK:CASE, or hang, exit or corrupt likewise");
        let mut parts = text.splitn(3, ':');
        let kind = parts.next().unwrap_or_default();
        let kind = FaultKind::from_str(kind, false).map_err(|_| malformed())?;
        let rank = parts
            .next()
            .and_then(|rank| rank.parse().ok())
            .ok_or_else(malformed)?;
        let case = parts.next().ok_or_else(malformed)?.to_owned();
        Ok(Fault { kind, rank, case })
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
    pub(crate) fn new(args: &GridArgs, device: DeviceKind) -> Result<Settings> {
        if !args.timeout.is_finite() || args.timeout <= 0.0 || args.timeout > 3600.0 {
            bail!(
                "--timeout {}: more than 0 and at most 3600 seconds are possible",
                args.timeout
            );
        }
        let mut dtypes = args.dtype.clone();
        dtypes.sort();
        dtypes.dedup();
        let world_sizes = parse_world_sizes(&args.world_size)?;
        let seed = args.seed.unwrap_or_else(|| u64::from(fastrand::u32(..)));
        Ok(Settings {
            dtypes,
            routes: parse_routes(&args.algo)?,
            ranks: args.ranks,
            sharing: args.sharing,
            filter: args.filter.clone(),
            timeout: Duration::from_secs_f64(args.timeout),
            fault: args.inject.clone(),
            ..Settings::of(device, args.grid, world_sizes, seed)
        })
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

/// `2..8`, `2,4,8`, `3`. World size 1 launches nothing, so it has no configurations.
pub(crate) fn parse_world_sizes(text: &str) -> Result<Vec<u32>> {
    let mut sizes = Vec::new();
    for item in text.split(',').map(str::trim) {
        let number = |text: &str| -> Result<u32> {
            text.trim()
                .parse()
                .ok()
                .filter(|size| (1..=8).contains(size))
                .with_context(|| {
                    format!("--world-size {item}: 1 to 8 are possible, or a range such as 2..8")
                })
        };
        match item.split_once("..") {
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last.trim_start_matches('='))?);
                if first > last {
                    bail!("--world-size {item}: the range is empty");
                }
                sizes.extend(first..=last);
            }
            None => sizes.push(number(item)?),
        }
    }
    sizes.sort_unstable();
    sizes.dedup();
    Ok(sizes)
}

fn parse_routes(names: &[String]) -> Result<Vec<Route>> {
    let mut selected = Vec::new();
    for name in names {
        let family = name
            .strip_prefix("pull_")
            .map(|algorithm| format!("symmetric_{algorithm}"));
        let chosen: Vec<Route> = Route::ALL
            .into_iter()
            .filter(|route| {
                let own = route.name();
                name == "all" || own == name || Some(own) == family.as_deref()
            })
            .collect();
        if chosen.is_empty() {
            let names: Vec<&str> = Route::ALL.into_iter().map(Route::name).collect();
            bail!(
                "--algo {name}: no such algorithm; there are {} and all",
                names.join(", ")
            );
        }
        selected.extend(chosen);
    }
    Ok(Route::ALL
        .into_iter()
        .filter(|route| selected.contains(route))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn world_sizes_are_numbers_ranges_and_lists() {
        assert_eq!(parse_world_sizes("2..8").unwrap(), [2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(parse_world_sizes("8,2..=3,2").unwrap(), [2, 3, 8]);
        for bad in ["0", "9", "4..2", "", "two", "2.."] {
            assert!(parse_world_sizes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pull_algorithm_means_staged_and_symmetric() {
        let routes = parse_routes(&["pull_one_shot".to_owned()]).unwrap();
        assert_eq!(routes, [Route::PullOneShot, Route::SymmetricOneShot]);
        assert_eq!(parse_routes(&["all".to_owned()]).unwrap(), Route::ALL);
        let error = parse_routes(&["ring".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("push_one_shot"), "{error}");
    }
}
