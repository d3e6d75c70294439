//! A report as tables.

use std::collections::BTreeSet;

use peersum::dispatch::Placement;

use super::build::Build;
use super::report::{Call, Cell, Norm, Report, System, fastest};
use super::sizes::bytes_text;
use super::timing::Launch;
use crate::names::name_of;
use crate::norm_output::NormOutput;
use crate::operation::Operation;
use crate::table::{Column, Row, Table, algorithm, grid, or_dash, quartiles_text, ratio, us_text};

/// Everything that a report says.
pub(crate) fn to_text(report: &Report) -> String {
    let mut text = format!("# {}\n{}", report.title(), report.run.remarks());
    for table in tables(report) {
        text += &format!("\n{}\n", table.to_text());
    }
    text
}

fn tables(report: &Report) -> Vec<Table> {
    let mut tables = Vec::new();
    for (world_size, link, dtype) in report.groups() {
        for launch in [Launch::Graph, Launch::Eager] {
            for pdl in [true, false] {
                let cells: Vec<&Cell> = report
                    .cells
                    .iter()
                    .filter(|cell| {
                        (cell.world_size, cell.link, cell.dtype) == (world_size, link, dtype)
                            && cell.launch == launch
                            && cell.build == Build::Shipped
                            && (cell.pdl == pdl || cell.is_of_nccl())
                    })
                    .collect();
                let title = format!(
                    "{world_size} ranks, {dtype}, {}, programmatic dependent launch {}",
                    launch.name(),
                    if pdl { "on" } else { "off" }
                );
                for operation in report.operations() {
                    tables.extend(measurements(operation, &title, &cells));
                }
            }
        }
    }
    tables.extend(limits(report));
    tables.extend(builds(report));
    tables
}

/// For each message the best grid of each way to make the call, the fastest first.
fn measurements(operation: Operation, title: &str, cells: &[&Cell]) -> Option<Table> {
    let title = match operation {
        Operation::AllReduce => title.to_owned(),
        Operation::RmsNorm => format!("{title}: all-reduce, residual and RMSNorm"),
        operation => format!("{title}: {}", name_of(&operation)),
    };
    let own = || {
        let cells = cells.iter().copied();
        cells.filter(|cell| cell.measured_operation() == operation && !cell.is_of_nccl())
    };
    let message = |cell: &Cell| (cell.norm.map(|norm| (norm.hidden, norm.rows)), cell.bytes);
    let messages: BTreeSet<_> = own().map(message).collect();
    let mut rows = Vec::new();
    for of_this in messages {
        let same = own().filter(|cell| message(cell) == of_this);
        let mut best = fastest(same, |cell| {
            let route = cell.plan.map(|plan| plan.route);
            (cell.system, cell.placement, cell.norm, route)
        });
        best.sort_by(|a, b| a.us.median.total_cmp(&b.us.median));
        rows.extend(best.into_iter().map(|cell| measurement(cell, cells)));
    }
    Table::of(title, rows)
}

/// One cell, beside NCCL; with RMSNorm also beside the same without fusion and without FP8, and the
/// all-reduce alone.
fn measurement(cell: &Cell, cells: &[&Cell]) -> Row {
    let us = cell.us.median;
    let best = |is_meant: &dyn Fn(&Cell) -> bool| {
        let of_message = |other: &&&Cell| {
            (other.bytes, other.operation) == (cell.bytes, cell.operation) && is_meant(other)
        };
        let others = cells.iter().filter(of_message);
        others.map(|other| other.us.median).reduce(f64::min)
    };
    let nccl = [System::Nccl, System::NcclSymmetric];
    let nccl = nccl.map(|system| best(&|other| other.system == system));
    let best_nccl = nccl.into_iter().flatten().reduce(f64::min);
    let bound = match cell.launch {
        Launch::Graph => ("limit", cell.limit_us),
        Launch::Eager => ("host", cell.host_us),
    };
    let chosen_by = match (cell.system, cell.from_table) {
        (System::BareLaunch, _) => "bare launch",
        (_, true) => "table",
        (_, false) => "forced",
    };
    let mut row = Vec::new();
    if let Some(norm) = cell.norm {
        row.push(("shape", format!("{} x {}", norm.rows, norm.hidden)));
    }
    row.extend([
        ("size", bytes_text(cell.bytes)),
        ("us", us_text(us)),
        ("quartiles", quartiles_text(cell.us)),
    ]);
    if let Some(norm) = cell.norm {
        row.push(("norm", norm.name().to_owned()));
        row.push(("output", norm.output.to_string()));
    }
    row.extend([
        source(cell),
        algorithm(cell.plan),
        grid(cell.plan),
        ("by", chosen_by.to_owned()),
    ]);
    match cell.norm {
        Some(norm) => row.extend(beside_norm(us, norm, |norm| {
            best(&|other| {
                (other.system, other.placement, other.norm) == (cell.system, cell.placement, norm)
            })
        })),
        None => row.extend([
            ("alg GB/s", format!("{:.2}", cell.algorithm_gb_s)),
            ("bus GB/s", format!("{:.2}", cell.bus_gb_s)),
        ]),
    }
    row.extend([(bound.0, us_text(bound.1)), ("ratio", ratio(us, bound.1))]);
    match cell.norm {
        Some(_) => row.push(("NCCL all-reduce", us_text(best_nccl))),
        None => row.extend([
            ("NCCL", us_text(nccl[0])),
            ("NCCL sym.", us_text(nccl[1])),
            ("of NCCL", ratio(us, best_nccl)),
        ]),
    }
    row
}

/// What a call with RMSNorm is compared with. `best` gives the times of other calls.
fn beside_norm(us: f64, norm: Norm, best: impl Fn(Option<Norm>) -> Option<f64>) -> [Column; 6] {
    let unfused = best(Some(Norm {
        is_fused: false,
        ..norm
    }));
    let plain = Norm {
        output: NormOutput::Same,
        ..norm
    };
    let without_fp8 = norm.output.has_fp8().then(|| best(Some(plain))).flatten();
    let alone = best(None);
    [
        ("unfused", us_text(unfused)),
        ("of unfused", ratio(us, unfused)),
        ("without FP8", us_text(without_fp8)),
        ("of that", ratio(us, without_fp8)),
        ("all-reduce", us_text(alone)),
        ("of all-reduce", ratio(us, alone)),
    ]
}

fn limits(report: &Report) -> Option<Table> {
    let rows = report.limits.iter().map(|limits| {
        let copies: Vec<String> = limits
            .copies
            .iter()
            .map(|copied| format!("{} {}", bytes_text(copied.bytes), us_text(copied.us)))
            .collect();
        vec![
            ("ranks", limits.world_size.to_string()),
            ("link", format!("{:?}", limits.link).to_lowercase()),
            ("empty, PDL", us_text(limits.empty_us.on)),
            ("empty", us_text(limits.empty_us.off)),
            ("exchange, PDL", us_text(limits.exchange_us.on)),
            ("exchange", us_text(limits.exchange_us.off)),
            ("one way", us_text(limits.one_way_us)),
            ("stores", format!("{:.0}", limits.store_gb_s)),
            ("copies", copies.join(", ")),
        ]
    });
    let title = "Limits, measured in the same run (us; GB/s a rank and direction)";
    Table::of(title.to_owned(), rows.collect())
}

/// What the other builds of the kernels take, beside the shipped one.
fn builds(report: &Report) -> Option<Table> {
    let shipped = report
        .cells
        .iter()
        .filter(|cell| cell.system == System::Peersum && cell.build == Build::Shipped);
    let rows = shipped.filter_map(|cell| {
        let other = |build| {
            let same = Call { build, ..cell.call };
            let same = report.cells.iter().find(|other| other.call == same);
            same.map(|other| other.us.median)
        };
        let us = cell.us.median;
        let (without, strict) = (other(Build::UnsafeBaseline), other(Build::StrictOrder));
        (without.is_some() || strict.is_some()).then(|| {
            vec![
                ("ranks", cell.world_size.to_string()),
                ("type", cell.dtype.to_string()),
                ("size", bytes_text(cell.bytes)),
                ("launch", cell.launch.name().to_owned()),
                source(cell),
                algorithm(cell.plan),
                ("shipped", us_text(us)),
                ("without safety", us_text(without)),
                ("cost of safety", ratio(us, without)),
                ("strict order", us_text(strict)),
                ("cost of order", ratio(strict, us)),
            ]
        })
    });
    let title = "Other builds of the kernels, interleaved in the same run (us)";
    Table::of(title.to_owned(), rows.collect())
}

/// What the input is.
fn source(cell: &Cell) -> Column {
    let text = cell.placement.map(|placement| match placement {
        Placement::Ordinary => "ordinary",
        Placement::Symmetric => "symmetric",
        Placement::SymmetricInPlace => "in place",
    });
    ("source", or_dash(text.map(str::to_owned)))
}
