//! `bench allreduce`: microseconds a call by world size, size, type, algorithm and grid, against
//! the machine's limits and NCCL.

mod arguments;
mod nccl;
mod samples;

use anyhow::Result;
use peersum::dispatch::Route;

pub(crate) use self::arguments::BenchArgs;
use self::nccl::measure_nccl;
use self::samples::measure_group;
use super::build::{Build, Builds};
use super::ranks::GroupSettings;
use super::report::{Report, Run, Sample, write_json, write_text};
use super::timing::{Launch, Timed};
use super::{chart, limits, page, table};
use crate::machine::{DeviceKind, Emulators, Gpus, Machine, decide};

/// Runs the benchmark, or reads one, and writes what is asked for.
///
/// # Errors
/// A flag is invalid, a file cannot be read or written, or something could not be measured.
/// Everything else was measured and written.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    if let Some(path) = &args.from_json {
        let report = Report::read(path)?;
        write(args, &report)?;
        print(&report);
        return Ok(());
    }
    let routes = routes(&args.algo);
    let kind = decide(args.call.device, 1)?.kind;
    let builds = Builds::new(kind, &args.call.run.cubins)
        .and(Build::UnsafeBaseline, args.unsafe_baseline.as_ref())
        .and(Build::StrictOrder, args.strict_order.as_ref());
    let report = match kind {
        DeviceKind::Emulator => {
            let emulators = Emulators::default();
            let mut report = new_report(args, &emulators, &builds)?;
            measure_ranks(args, &emulators, &builds, &routes, &mut report);
            report
        }
        DeviceKind::Cuda => {
            let gpus = Gpus::open(u32::MAX)?;
            let mut report = new_report(args, &gpus, &builds)?;
            measure_limits(args, &gpus, &mut report);
            measure_ranks(args, &gpus, &builds, &routes, &mut report);
            // Write now, in case NCCL hangs.
            write(args, &report)?;
            measure_nccl(args, &gpus, &mut report);
            report
        }
    };
    write(args, &report)?;
    print(&report);
    report.run.ensure_all_was_measured()
}

/// The algorithms that `--algo` names.
fn routes(names: &[String]) -> Vec<Route> {
    let is_named = |route: &Route| {
        names
            .iter()
            .any(|name| name == "all" || name == route.name())
    };
    Route::ALL.into_iter().filter(is_named).collect()
}

fn print(report: &Report) {
    println!("# {}", report.title());
    print!("{}", report.run.remarks());
    for table in table::tables(report) {
        println!("\n{}", table.to_text());
    }
}

fn write(args: &BenchArgs, report: &Report) -> Result<()> {
    write_json(args.json.as_deref(), report)?;
    write_text(args.html.as_deref(), || page::page(report))?;
    write_text(args.svg.as_deref(), || chart::picture(report))
}

fn new_report(args: &BenchArgs, machine: &impl Machine, builds: &Builds) -> Result<Report> {
    Ok(Report {
        run: Run::new(machine, builds, args.call.run.replays)?,
        emulated: machine.kind() == DeviceKind::Emulator,
        calls: args.call.calls,
        limits: Vec::new(),
        cells: Vec::new(),
    })
}

fn measure_limits(args: &BenchArgs, gpus: &Gpus, report: &mut Report) {
    let Some(directory) = &args.limits else {
        let note = "the machine's limits were not measured: --limits was not given";
        report.run.notes.push(note.to_owned());
        return;
    };
    let method = args.call.method(Launch::Graph);
    for &world_size in &args.world_size {
        let what = format!("limits of {world_size} ranks");
        eprintln!("{what}");
        let measured = limits::measure(gpus, directory, world_size, &args.call.bytes, method);
        report.limits.extend(report.run.take(&what, measured));
    }
}

fn measure_ranks<M: Timed>(
    args: &BenchArgs,
    machine: &M,
    builds: &Builds,
    routes: &[Route],
    report: &mut Report,
) {
    let all = builds.all();
    let rounds = args.rounds.unwrap_or(if all.len() > 1 { 3 } else { 1 });
    let largest_bytes = args.call.largest_bytes();
    let mut samples: Vec<Sample> = Vec::new();
    for &world_size in &args.world_size {
        for &pdl in args.pdl.values() {
            // The builds alternate, so that drift affects all of them alike.
            for round in 0..rounds {
                for &build in &all {
                    eprintln!(
                        "{world_size} ranks, PDL {}, {}, round {} of {rounds}",
                        if pdl { "on" } else { "off" },
                        build.name(),
                        round + 1
                    );
                    let measured = builds.load_policy(build).and_then(|load_policy| {
                        let settings = GroupSettings {
                            world_size,
                            largest_bytes,
                            pdl,
                            load_policy,
                            max_blocks: args.max_blocks,
                            tables: args.tables.clone(),
                            push_half_bytes: args.call.push_half,
                        };
                        measure_group(args, machine, build, routes, &settings)
                    });
                    let what = format!("{world_size} ranks with the {} build", build.name());
                    let measured = report.run.take(&what, measured);
                    Sample::add_round(&mut samples, measured.unwrap_or_default());
                }
            }
        }
    }
    report.run.failures.dedup();
    let cells = samples.iter().map(|sample| sample.cell(&report.limits));
    report.cells = cells.collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_names_every_algorithm_and_best_none() {
        let names = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(routes(&names("best,all")), Route::ALL);
        assert_eq!(routes(&names("best")), []);
        let two = [Route::PushOneShot, Route::PullOneShot];
        assert_eq!(routes(&names("push_one_shot,pull_one_shot")), two);
    }
}
