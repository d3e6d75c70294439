//! The settings of a run: the flags, and the resolved form that workers get.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use peersum::device::MemorySharing;
use peersum::dispatch::Route;
use peersum::loader::{JitMode, LoadPolicy};
use peersum::{Communicator, CommunicatorBuilder, Rendezvous};
use peersum_artifact::Dtype;
use serde::{Deserialize, Serialize};

use crate::machine::{DeviceChoice, DeviceKind};
use crate::names::{by_name, name_of};
use crate::operation::Operation;

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

/// The flags of `grid`, which `cargo xtask test-allreduce` passes on.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct GridArgs {
    /// What the ranks run on.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) device: DeviceChoice,
    #[command(flatten)]
    pub(crate) settings: Settings,
    /// Print the names of the configurations and run none.
    #[arg(long)]
    pub(crate) list: bool,
    /// Write a report in JSON.
    #[arg(long, value_name = "FILE.json")]
    pub(crate) report: Option<PathBuf>,
    /// The time that precompiling took, in seconds, for the report.
    #[arg(long, hide = true)]
    pub(crate) precompile_seconds: Option<f64>,
}

/// The settings of a run that every rank gets.
#[derive(Debug, Clone, clap::Args, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// What the calls do: `all_reduce`, `rms_norm` (all-reduce, residual and RMSNorm in one call),
    /// `all_gather`, `reduce_scatter`, `broadcast`, or `all`.
    #[arg(long = "op", value_name = "LIST", default_value = "all", value_parser = parse_ops)]
    pub(crate) ops: Box<[Operation]>,
    /// World sizes: a number, a range such as 2..8 (inclusive), or a list of these. A group of one
    /// has configurations of `rms_norm` only.
    #[arg(
        long = "world-size",
        value_name = "LIST",
        default_value = "2..8",
        value_parser = parse_all_world_sizes
    )]
    pub(crate) world_sizes: Box<[u32]>,
    /// Element types: `f16`, `bf16` and `f32` for every operation; `u8`, `i8`, `u32`, `i32`, `u64`
    /// and `i64` for `all_gather` and `broadcast`; or `all`.
    #[arg(
        long = "dtype",
        value_name = "LIST",
        default_value = "all",
        value_parser = parse_dtypes
    )]
    pub(crate) dtypes: Box<[Dtype]>,
    /// Algorithms: `push_one_shot`, `push_two_shot`, `pull_one_shot` and `pull_two_shot` (both with
    /// staged and with symmetric input), `symmetric_one_shot`, `symmetric_two_shot`, or `all`. For
    /// all-reduces, with RMSNorm and without.
    #[arg(
        long = "algo",
        value_name = "LIST",
        default_value = "all",
        value_parser = parse_routes
    )]
    pub(crate) routes: Box<[Route]>,
    /// What `--device` came to. The configurations are the same on every device.
    #[arg(skip = DeviceKind::Emulator)]
    pub(crate) device: DeviceKind,
    /// What a rank is.
    #[arg(long, value_enum, default_value = "threads")]
    pub(crate) ranks: RankKind,
    /// Which configurations.
    #[arg(long, value_enum, default_value = "smoke")]
    pub(crate) grid: GridKind,
    /// How the ranks share memory: `auto` (file descriptors if the device supports them, otherwise
    /// legacy IPC), `file-descriptor` (of the driver's virtual memory management) or `legacy-ipc`
    /// (legacy CUDA IPC; between threads, addresses).
    #[arg(long, default_value = "auto", value_parser = by_name::<MemorySharing>)]
    pub(crate) sharing: MemorySharing,
    /// The seed of all data, sizes and delays [default: random]. Every report contains it.
    #[arg(long, default_value_t = random_seed(), hide_default_value = true)]
    pub(crate) seed: u64,
    /// Run only configurations whose name matches: `ws4/bf16/push_one_shot/1040/eager/aligned`,
    /// `ws4/*/pull_two_shot`, `adversarial`, `broadcast`.
    #[arg(long, value_name = "CASE")]
    pub(crate) filter: Option<String>,
    /// Maximum time that a call waits for a peer, in seconds. If no rank reports anything for this
    /// time plus 15 seconds, the run ends.
    #[arg(long, value_name = "SECONDS", default_value = "20", value_parser = parse_timeout)]
    pub(crate) timeout: Duration,
    /// For tests: `kill:RANK:CASE`, `hang:`, `exit:` or `corrupt:` likewise, where CASE is a name.
    #[arg(long = "inject", hide = true, value_name = "FAULT")]
    pub(crate) fault: Option<Fault>,
    /// The initial values of the call counters: for push, and for pull (at least 1).
    #[arg(skip = (0, 1))]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FaultKind {
    /// Kills itself.
    Kill,
    /// Hangs.
    Hang,
    /// Exits with status 0 before it is done.
    Exit,
    /// Changes one bit of a result, and of other arrays that are compared on the host, before it
    /// does: of the second element, in round 1, layer 2.
    Corrupt,
}

impl std::str::FromStr for Fault {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.splitn(3, ':').collect();
        let [kind, rank, case] = parts[..] else {
            bail!("it is kill:RANK:CASE, or hang, exit or corrupt likewise");
        };
        Ok(Fault {
            kind: by_name(kind)?,
            rank: rank.parse()?,
            case: case.to_owned(),
        })
    }
}

/// Maximum time that ranks wait for each other in set-up. It can be long because the runner watches
/// the ranks, and must be long because ranks of larger groups wait here while the smaller groups
/// run.
const SETUP_TIMEOUT: Duration = Duration::from_secs(3600);

impl Settings {
    /// What every communicator of the run is built with.
    pub(crate) fn builder(&self, rendezvous: Rendezvous) -> Result<CommunicatorBuilder> {
        let (push_epoch, pull_epoch) = self.start_epochs;
        Ok(Communicator::builder()
            .rendezvous(rendezvous)
            .load_policy(LoadPolicy::from_env()?.jit(JitMode::Deny))
            .start_epochs(push_epoch, pull_epoch)
            .setup_timeout(SETUP_TIMEOUT)
            .timeout(self.timeout)
            .memory_sharing(self.sharing()))
    }

    /// All configurations of a grid by ranks that are threads.
    pub(crate) fn of(
        device: DeviceKind,
        grid: GridKind,
        world_sizes: impl Into<Box<[u32]>>,
        seed: u64,
    ) -> Settings {
        Settings {
            ops: Operation::value_variants().into(),
            world_sizes: world_sizes.into(),
            dtypes: Dtype::ALL.into(),
            routes: Route::ALL.into(),
            device,
            ranks: RankKind::Threads,
            grid,
            sharing: MemorySharing::Auto,
            seed,
            filter: None,
            // Far longer than any sound call takes, also on a busy machine.
            timeout: Duration::from_secs(20),
            fault: None,
            start_epochs: (0, 1),
        }
    }

    /// The element types of an operation.
    pub(super) fn dtypes_of(&self, op: Operation) -> Vec<Dtype> {
        let dtypes = self.dtypes.iter().copied();
        dtypes.filter(|&dtype| op.takes(dtype)).collect()
    }

    /// The ranks that the largest group needs.
    pub(crate) fn most_ranks(&self) -> u32 {
        self.world_sizes.iter().copied().max().unwrap_or(0)
    }

    /// How the ranks share memory.
    pub(crate) fn sharing(&self) -> MemorySharing {
        match (self.sharing, self.device, self.grid, self.ranks) {
            // One address for all ranks: initcheck tracks written addresses and does not know that
            // two addresses can map the same memory.
            (MemorySharing::Auto, DeviceKind::Cuda, GridKind::Sanitizer, RankKind::Threads) => {
                MemorySharing::LegacyIpc
            }
            (sharing, ..) => sharing,
        }
    }

    /// The command that runs one configuration again with the same data.
    pub(super) fn reproduce(&self, op: Operation, name: &str) -> String {
        let mut command = format!(
            "cargo xtask test-allreduce --device {} --ranks {} --grid {} --seed {} --op {}",
            name_of(&self.device),
            name_of(&self.ranks),
            name_of(&self.grid),
            self.seed,
            op.name()
        );
        match self.sharing {
            MemorySharing::Auto => {}
            MemorySharing::FileDescriptor => command += " --sharing file-descriptor",
            MemorySharing::LegacyIpc => command += " --sharing legacy-ipc",
        }
        // Both decide which calls an adversarial case makes, and the types which cases there are.
        if self.routes.len() < Route::ALL.len() {
            let routes: Vec<&str> = self.routes.iter().map(|route| route.name()).collect();
            command += &format!(" --algo {}", routes.join(","));
        }
        if self.dtypes.len() < Dtype::ALL.len() {
            let dtypes: Vec<String> = self.dtypes.iter().map(Dtype::to_string).collect();
            command += &format!(" --dtype {}", dtypes.join(","));
        }
        command + &format!(" --filter {name}")
    }
}

/// A seed that is short to type.
pub(crate) fn random_seed() -> u64 {
    u64::from(fastrand::u32(..))
}

fn parse_timeout(text: &str) -> Result<Duration> {
    let seconds = text.parse()?;
    ensure!((1..=3600).contains(&seconds), "1 to 3600 are possible");
    Ok(Duration::from_secs(seconds))
}

/// Those of `all` that a list selects. `items` returns what one item of the list selects.
fn select<T: Copy + PartialEq>(
    all: impl IntoIterator<Item = T>,
    list: &str,
    items: impl Fn(&str) -> Result<Vec<T>>,
) -> Result<Box<[T]>> {
    let selected: Vec<Vec<T>> = list.split(',').map(items).collect::<Result<_>>()?;
    let is_selected = |one: &T| selected.iter().flatten().any(|item| item == one);
    Ok(all.into_iter().filter(is_selected).collect())
}

/// Parses world sizes, and leaves out groups of one, whose all-reduce launches nothing.
pub(crate) fn parse_world_sizes(list: &str) -> Result<Box<[u32]>> {
    let all = parse_all_world_sizes(list)?;
    Ok(all.into_iter().filter(|size| *size > 1).collect())
}

/// Parses world sizes.
fn parse_all_world_sizes(list: &str) -> Result<Box<[u32]>> {
    select(1..=8, list, |item| {
        let number = |text: &str| {
            let size = text.trim().parse().ok();
            size.filter(|size| (1..=8).contains(size))
        };
        let (first, last) = item.split_once("..").unwrap_or((item, item));
        number(first)
            .zip(number(last.trim_start_matches('=')))
            .map(|(first, last)| (first..=last).collect())
            .filter(|sizes: &Vec<u32>| !sizes.is_empty())
            .context("1 to 8 are possible, or a range such as 2..8")
    })
}

/// Parses a list of operations; `all` is each of them, and dashes may take the place of
/// underscores.
fn parse_ops(list: &str) -> Result<Box<[Operation]>> {
    let all = Operation::value_variants();
    select(all.iter().copied(), list, |name| match name {
        "all" => Ok(all.to_vec()),
        _ => Ok(vec![by_name(&name.replace('-', "_"))?]),
    })
}

fn parse_dtypes(list: &str) -> Result<Box<[Dtype]>> {
    select(Dtype::ALL.iter().copied(), list, |name| match name {
        "all" => Ok(Dtype::ALL.to_vec()),
        _ => Ok(vec![name.parse()?]),
    })
}

fn parse_routes(list: &str) -> Result<Box<[Route]>> {
    select(Route::ALL, list, |name| {
        let symmetric = name.replace("pull_", "symmetric_");
        let mut routes = Route::ALL.to_vec();
        routes.retain(|route| name == "all" || [name, &symmetric].contains(&route.name()));
        let names = Route::ALL.map(Route::name).join(", ");
        ensure!(!routes.is_empty(), "there are {names} and all");
        Ok(routes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn world_sizes_are_numbers_ranges_and_lists() {
        let sizes = |list| parse_world_sizes(list).unwrap();
        assert_eq!(*sizes("1..8"), [2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(*sizes("8,2..=3,2"), [2, 3, 8]);
        for bad in ["0", "9", "4..2", "", "two", "2.."] {
            assert!(parse_world_sizes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn operations_are_a_list_with_underscores_or_dashes() {
        let ops = |list| parse_ops(list).unwrap();
        assert_eq!(*ops("all"), *Operation::value_variants());
        assert_eq!(*ops("rms-norm"), [Operation::RmsNorm]);
        let two = [Operation::AllReduce, Operation::AllGather];
        assert_eq!(*ops("all_gather,all-reduce,all_gather"), two);
        for bad in ["", "ring", "all_gather,"] {
            let error = parse_ops(bad).unwrap_err().to_string();
            assert!(error.contains("reduce_scatter"), "{error}");
        }
    }

    #[test]
    fn a_pull_algorithm_means_staged_and_symmetric() {
        let routes = parse_routes("pull_one_shot").unwrap();
        assert_eq!(*routes, [Route::PullOneShot, Route::SymmetricOneShot]);
        assert_eq!(*parse_routes("all").unwrap(), Route::ALL);
        let error = parse_routes("ring").unwrap_err().to_string();
        assert!(error.contains("push_one_shot"), "{error}");
    }
}
