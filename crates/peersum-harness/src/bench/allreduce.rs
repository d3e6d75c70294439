//! `bench allreduce`: microseconds a call by world size, size, type, algorithm and grid, against
//! the machine's limits and NCCL.

mod arguments;
mod cells;
mod nccl;

use anyhow::Result;

pub(crate) use self::arguments::BenchArgs;
use self::cells::measure_group;
use self::nccl::measure_nccl;
use super::ranks::GroupSettings;
use super::report::{Report, Run, Sample, write_json, write_text};
use super::timing::{Launch, Timed};
use super::{chart, limits, page, tables};
use crate::machine::{DeviceKind, Emulators, Gpus, Machine, decide};
use crate::operation::Operation;

/// Runs the benchmark, or reads one, and writes what is asked for.
///
/// # Errors
/// A flag is invalid, a file cannot be read or written, or something could not be measured.
/// Everything else was measured and written.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    if let Some(path) = &args.from_json {
        let report = Report::read(path)?;
        write(args, &report)?;
        print!("{}", tables::to_text(&report));
        return Ok(());
    }
    let report = match decide(args.call.device, 1)?.kind {
        DeviceKind::Emulator => {
            let emulators = Emulators::default();
            let mut report = new_report(args, &emulators)?;
            measure_ranks(args, &emulators, &mut report);
            report
        }
        DeviceKind::Cuda => {
            let gpus = Gpus::open(u32::MAX)?;
            let mut report = new_report(args, &gpus)?;
            measure_limits(args, &gpus, &mut report);
            measure_ranks(args, &gpus, &mut report);
            // Write now, in case NCCL hangs.
            write(args, &report)?;
            measure_nccl(args, &gpus, &mut report);
            report
        }
    };
    write(args, &report)?;
    print!("{}", tables::to_text(&report));
    report.run.ensure_all_was_measured()
}

fn write(args: &BenchArgs, report: &Report) -> Result<()> {
    write_json(args.json.as_deref(), report)?;
    write_text(args.html.as_deref(), || page::page(report))?;
    write_text(args.svg.as_deref(), || chart::picture(report))
}

fn new_report(args: &BenchArgs, machine: &impl Machine) -> Result<Report> {
    Ok(Report {
        run: Run::new(machine, &args.call.run.cubins, args.call.run.replays)?,
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
        let measured = limits::measure(gpus, directory, world_size, &args.all_bytes(), method);
        report.limits.extend(report.run.take(&what, measured));
    }
}

fn measure_ranks<M: Timed>(args: &BenchArgs, machine: &M, report: &mut Report) {
    let builds = args.builds();
    let rounds = args.rounds.unwrap_or(if builds.len() > 1 { 3 } else { 1 });
    let mut samples: Vec<Sample> = Vec::new();
    for &world_size in &args.world_size {
        for &pdl in &args.pdl {
            // The builds alternate, so that drift affects all of them alike.
            for round in 1..=rounds {
                for &(build, cubins) in &builds {
                    let what = format!("{world_size} ranks with the {} build", build.name());
                    let on = if pdl { "on" } else { "off" };
                    eprintln!("{what}, PDL {on}, round {round} of {rounds}");
                    let load_policy = build.load_policy(machine.kind(), cubins);
                    let measured = load_policy.and_then(|load_policy| {
                        let settings = GroupSettings {
                            world_size,
                            largest_bytes: args.largest_bytes(),
                            normalises: args.op == Operation::RmsNorm,
                            pdl,
                            load_policy,
                            max_blocks: args.max_blocks,
                            tables: args.tables.clone(),
                        };
                        measure_group(args, machine, build, &settings)
                    });
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
