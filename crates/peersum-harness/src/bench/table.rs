//! A report as tables, in plain text and for the page.

use std::fmt::Write as _;

use peersum::dispatch::Placement;

use super::build::Build;
use super::report::{Call, Cell, Launch, Report, System};
use super::sizes::bytes_text;

/// Rows of text under a head.
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) head: Vec<&'static str>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// Everything that a report says, except for the notes.
pub(crate) fn tables(report: &Report) -> Vec<Table> {
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
                tables.extend(measurements(title, &cells, launch));
            }
        }
    }
    tables.extend(limits(report));
    tables.extend(builds(report));
    tables
}

/// For each size the best grid of each algorithm and placement, the fastest first.
fn measurements(title: String, cells: &[&Cell], launch: Launch) -> Option<Table> {
    let mut sizes: Vec<u64> = cells.iter().map(|cell| cell.bytes).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let mut rows = Vec::new();
    for bytes in sizes {
        let of_size = || cells.iter().copied().filter(|cell| cell.bytes == bytes);
        let nccl = |system| {
            let found = of_size().find(|cell| cell.system == system);
            found.map(|cell| cell.us.median)
        };
        let (plain, symmetric) = (nccl(System::Nccl), nccl(System::NcclSymmetric));
        let best_nccl = plain.into_iter().chain(symmetric).fold(f64::NAN, f64::min);
        let mut best: Vec<&Cell> = Vec::new();
        for cell in of_size().filter(|cell| !cell.is_of_nccl()) {
            let same = best.iter_mut().find(|other| {
                (
                    other.system,
                    other.placement,
                    other.plan.map(|plan| plan.route),
                ) == (
                    cell.system,
                    cell.placement,
                    cell.plan.map(|plan| plan.route),
                )
            });
            match same {
                Some(other) if cell.us.median < other.us.median => *other = cell,
                Some(_) => {}
                None => best.push(cell),
            }
        }
        best.sort_by(|a, b| a.us.median.total_cmp(&b.us.median));
        for cell in best {
            rows.push(vec![
                bytes_text(bytes),
                us_text(cell.us.median),
                format!(
                    "{}..{}",
                    us_text(cell.us.lower_quartile),
                    us_text(cell.us.upper_quartile)
                ),
                cell.placement.map_or("", placement_text).to_owned(),
                cell.plan.map_or("", |plan| plan.route.name()).to_owned(),
                cell.plan.map_or_else(String::new, |plan| {
                    format!("{} x {}", plan.blocks, plan.threads)
                }),
                match (cell.system, cell.from_table) {
                    (System::BareLaunch, _) => "bare launch",
                    (_, true) => "table",
                    (_, false) => "forced",
                }
                .to_owned(),
                format!("{:.2}", cell.algorithm_gb_s),
                format!("{:.2}", cell.bus_gb_s),
                match launch {
                    Launch::Graph => or_dash(cell.limit_us.map(us_text)),
                    Launch::Eager => or_dash(cell.host_us.map(us_text)),
                },
                match launch {
                    Launch::Graph => or_dash(cell.limit_ratio().map(ratio_text)),
                    Launch::Eager => {
                        or_dash(cell.host_us.map(|us| ratio_text(cell.us.median / us)))
                    }
                },
                or_dash(plain.map(us_text)),
                or_dash(symmetric.map(us_text)),
                or_dash((!best_nccl.is_nan()).then(|| ratio_text(cell.us.median / best_nccl))),
            ]);
        }
    }
    let bound = match launch {
        Launch::Graph => "limit",
        Launch::Eager => "host",
    };
    (!rows.is_empty()).then(|| Table {
        title,
        head: vec![
            "size",
            "us",
            "quartiles",
            "source",
            "algorithm",
            "grid",
            "by",
            "alg GB/s",
            "bus GB/s",
            bound,
            "ratio",
            "NCCL",
            "NCCL sym.",
            "of NCCL",
        ],
        rows,
    })
}

fn limits(report: &Report) -> Option<Table> {
    let rows: Vec<Vec<String>> = report
        .limits
        .iter()
        .map(|limits| {
            let copies: Vec<String> = limits
                .copies
                .iter()
                .map(|copied| format!("{} {}", bytes_text(copied.bytes), us_text(copied.us)))
                .collect();
            vec![
                limits.world_size.to_string(),
                format!("{:?}", limits.link).to_lowercase(),
                us_text(limits.empty_us.on),
                us_text(limits.empty_us.off),
                us_text(limits.exchange_us.on),
                us_text(limits.exchange_us.off),
                us_text(limits.one_way_us),
                format!("{:.0}", limits.store_gb_s),
                format!("{:.0}", limits.load_gb_s),
                copies.join(", "),
            ]
        })
        .collect();
    (!rows.is_empty()).then(|| Table {
        title: "Limits, measured in the same run (us; GB/s a rank and direction)".to_owned(),
        head: vec![
            "ranks",
            "link",
            "empty, PDL",
            "empty",
            "exchange, PDL",
            "exchange",
            "one way",
            "stores",
            "loads",
            "copies",
        ],
        rows,
    })
}

/// What the other builds of the kernels take, beside the shipped one.
fn builds(report: &Report) -> Option<Table> {
    let shipped = report
        .cells
        .iter()
        .filter(|cell| cell.system == System::Peersum && cell.build == Build::Shipped);
    let mut rows = Vec::new();
    for cell in shipped {
        let other = |build| {
            let same = Call { build, ..cell.call };
            let same = report.cells.iter().find(|other| other.call == same);
            same.map(|other| other.us.median)
        };
        let (unsafe_baseline, strict_order) =
            (other(Build::UnsafeBaseline), other(Build::StrictOrder));
        if unsafe_baseline.is_none() && strict_order.is_none() {
            continue;
        }
        rows.push(vec![
            cell.world_size.to_string(),
            cell.dtype.to_string(),
            bytes_text(cell.bytes),
            cell.launch.name().to_owned(),
            cell.placement.map_or("", placement_text).to_owned(),
            cell.plan.map_or("", |plan| plan.route.name()).to_owned(),
            us_text(cell.us.median),
            or_dash(unsafe_baseline.map(us_text)),
            or_dash(unsafe_baseline.map(|us| ratio_text(cell.us.median / us))),
            or_dash(strict_order.map(us_text)),
            or_dash(strict_order.map(|us| ratio_text(us / cell.us.median))),
        ]);
    }
    (!rows.is_empty()).then(|| Table {
        title: "Other builds of the kernels, interleaved in the same run (us)".to_owned(),
        head: vec![
            "ranks",
            "type",
            "size",
            "launch",
            "source",
            "algorithm",
            "shipped",
            "without safety",
            "cost of safety",
            "strict order",
            "cost of order",
        ],
        rows,
    })
}

/// Two decimals below 10, one below 100.
pub(crate) fn us_text(us: f64) -> String {
    match us {
        us if us < 10.0 => format!("{us:.2}"),
        us if us < 100.0 => format!("{us:.1}"),
        us => format!("{us:.0}"),
    }
}

pub(crate) fn ratio_text(ratio: f64) -> String {
    format!("{ratio:.3}")
}

pub(crate) fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

/// What the input is.
pub(crate) fn placement_text(placement: Placement) -> &'static str {
    match placement {
        Placement::Ordinary => "ordinary",
        Placement::Symmetric => "symmetric",
        Placement::SymmetricInPlace => "in place",
    }
}

impl Table {
    /// Columns aligned by spaces: to the left where a column's first entry begins with a letter,
    /// else to the right.
    pub(crate) fn to_text(&self) -> String {
        let mut text = format!("{}\n", self.title);
        let widths: Vec<usize> = (0..self.head.len())
            .map(|column| {
                let entries = self.rows.iter().filter_map(|row| row.get(column));
                let head = self.head.get(column).map_or(0, |head| head.len());
                entries.map(String::len).chain([head]).max().unwrap_or(0)
            })
            .collect();
        let head: Vec<String> = self.head.iter().map(|&head| head.to_owned()).collect();
        for row in std::iter::once(&head).chain(&self.rows) {
            let mut line = String::new();
            for (column, (entry, &width)) in row.iter().zip(&widths).enumerate() {
                let first = self.rows.first().and_then(|row| row.get(column));
                let is_word =
                    first.is_some_and(|entry| entry.starts_with(|c: char| c.is_alphabetic()));
                let _ = if is_word {
                    write!(line, "  {entry:<width$}")
                } else {
                    write!(line, "  {entry:>width$}")
                };
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_text_are_aligned() {
        let table = Table {
            title: "title".to_owned(),
            head: vec!["size", "algorithm"],
            rows: vec![
                vec!["4K".to_owned(), "push".to_owned()],
                vec!["256K".to_owned(), "pull".to_owned()],
            ],
        };
        assert_eq!(
            table.to_text(),
            "title\n  size  algorithm\n    4K  push\n  256K  pull\n"
        );
    }

    #[test]
    fn times_have_three_digits() {
        assert_eq!([1.234, 12.34, 123.4].map(us_text), ["1.23", "12.3", "123"]);
    }
}
