//! Kill tests: each rank is a process, and one of them is killed or stopped in some phase of its
//! life. Every survivor must learn in time which rank it was, leak nothing, and be able to form a
//! new group.

mod holdings;
mod leftovers;
mod rank;
mod ranks;
mod referee;
mod run;
mod scenario;
mod words;
mod work;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::grid::settings::random_seed;
use crate::machine::{DeviceChoice, DeviceKind, decide};
use crate::table::Table;
use referee::{Findings, referee};
use run::{Deadlines, Planted, Run};
use scenario::{Choices, Scenario};

pub(crate) use rank::run as run_rank;

/// The flags of `kill`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct KillArgs {
    /// What the ranks run on.
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceChoice,
    /// Number of runs.
    #[arg(long, default_value_t = 200)]
    runs: u64,
    /// Run only the run with this number.
    #[arg(long, overrides_with_all = ["run", "runs"])]
    run: Option<u64>,
    /// The seed of all random choices [default: a new one, which is printed].
    #[arg(
        long,
        default_value_t = random_seed(),
        hide_default_value = true,
        overrides_with = "seed"
    )]
    seed: u64,
    /// Runs at once [default: 4 on the emulator, 1 on GPUs].
    #[arg(long)]
    jobs: Option<usize>,
    #[command(flatten)]
    choices: Choices,
    /// The deadline of a call, in milliseconds [default: 500 on the emulator, 1000 on GPUs].
    #[arg(long)]
    timeout_ms: Option<u64>,
    /// What a survivor may take beyond its deadline, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    grace_ms: u64,
    /// Maximum time for steps without a deadline of their own, in milliseconds.
    #[arg(long, default_value_t = 60_000, hide = true)]
    patience_ms: u64,
    /// Write a report in JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    planted: Planted,
}

/// The runs of one phase and signal.
#[derive(Debug, Default, Serialize)]
struct Line {
    runs: usize,
    passed: usize,
    /// From the blow to the last survivor's report, in milliseconds.
    longest_ms: f64,
    /// Survivors' errors by kind.
    errors: BTreeMap<words::Kind, usize>,
    /// Runs whose rank 0 was killed last, so that the next run had to remove its files.
    swept_by_next_run: usize,
}

#[derive(Debug, Serialize)]
struct Report {
    device: String,
    seed: u64,
    deadlines: Deadlines,
    lines: BTreeMap<String, Line>,
    failed: Vec<String>,
    seconds: f64,
}

/// Runs the tests that the flags describe. Returns whether every run passed.
pub(crate) fn run(args: &KillArgs) -> Result<bool> {
    let began = Instant::now();
    let ranks = args.choices.world_size.iter().copied().max().unwrap_or(2);
    let decision = decide(args.device, ranks)?;
    let device = decision.kind;
    let (seed, on_gpu) = (args.seed, device == DeviceKind::Cuda);
    let milliseconds = Duration::from_millis;
    let deadlines = Deadlines {
        call: milliseconds(args.timeout_ms.unwrap_or(if on_gpu { 1000 } else { 500 })),
        set_up: milliseconds(if on_gpu { 5000 } else { 1000 }),
        grace: milliseconds(args.grace_ms),
        patience: milliseconds(args.patience_ms),
    };
    let numbers = args.run.map_or(0..args.runs, |run| run..run + 1);
    ensure!(!numbers.is_empty(), "--runs 0 tests nothing");
    println!("device: {}", decision.line);
    println!("seed {seed}, {} runs", numbers.end - numbers.start);

    let report = Mutex::new(Report {
        device: decision.line,
        seed,
        deadlines,
        lines: BTreeMap::new(),
        failed: Vec::new(),
        seconds: 0.0,
    });
    let next = AtomicU64::new(numbers.start);
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= numbers.end {
                return;
            }
            let run = Run {
                device,
                scenario: args.choices.scenario(seed, number),
                deadlines,
                planted: args.planted,
            };
            let outcome = referee(&run);
            let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
            report.add(&run.scenario, outcome);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.unwrap_or(if on_gpu { 1 } else { 4 }).max(1) {
            scope.spawn(work);
        }
    });
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.seconds = began.elapsed().as_secs_f64();
    report.print();
    if let Some(path) = &args.report {
        let json = serde_json::to_vec_pretty(&report)?;
        std::fs::write(path, json).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(report.failed.is_empty())
}

impl Report {
    /// Adds a run, and prints the flags that repeat it if it did not pass.
    fn add(&mut self, scenario: &Scenario, outcome: Result<Findings>) {
        let key = format!("{:?}/{:?}", scenario.phase, scenario.blow);
        let line = self.lines.entry(key).or_default();
        line.runs += 1;
        let findings = match outcome {
            Ok(findings) => findings,
            Err(error) => {
                let (seed, run) = (self.seed, scenario.run);
                println!("FAILED {scenario}: {error:#}");
                println!("  again: the same flags, then --seed {seed} --run {run}");
                self.failed.push(format!("{scenario}: {error:#}"));
                return;
            }
        };
        line.passed += 1;
        line.longest_ms = line.longest_ms.max(findings.longest.as_secs_f64() * 1e3);
        for (kind, count) in findings.kinds {
            *line.errors.entry(kind).or_insert(0) += count;
        }
        line.swept_by_next_run += usize::from(findings.swept_by_next_run);
    }

    fn print(&self) {
        let rows = self.lines.iter().map(|(key, line)| {
            let errors = line.errors.iter();
            let errors: Vec<String> = errors
                .map(|(kind, count)| format!("{count} {kind:?}"))
                .collect();
            vec![
                ("phase/signal", key.clone()),
                ("runs", line.runs.to_string()),
                ("passed", line.passed.to_string()),
                ("longest ms", format!("{:.0}", line.longest_ms)),
                ("swept by the next run", line.swept_by_next_run.to_string()),
                ("survivors' errors", errors.join(", ")),
            ]
        });
        if let Some(table) = Table::of("The runs".to_owned(), rows.collect()) {
            println!("{}", table.to_text());
        }
        println!(
            "{} of {} runs passed, deadlines {:?} (calls), {:?} (set-up) + {:?}, {:.1} s",
            self.lines.values().map(|line| line.passed).sum::<usize>(),
            self.lines.values().map(|line| line.runs).sum::<usize>(),
            self.deadlines.call,
            self.deadlines.set_up,
            self.deadlines.grace,
            self.seconds
        );
    }
}
