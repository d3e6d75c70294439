//! A report as tables, in plain text and for the page.

use peersum::dispatch::{Placement, Plan};

use super::build::Build;
use super::report::{Call, Cell, Report, System, fastest};
use super::sizes::bytes_text;
use super::timing::{Launch, Spread};
use crate::names::name_of;
use crate::operation::Operation;

/// Lines of text, the first of which is the head.
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) lines: Vec<Vec<String>>,
}

/// For each size the best grid of each algorithm and placement, the fastest first.
pub(super) fn measurements(operation: Operation, title: &str, cells: &[&Cell]) -> Option<Table> {
    let title = match operation {
        Operation::AllReduce => title.to_owned(),
        operation => format!("{title}: {}", name_of(&operation)),
    };
    let cells = || {
        let cells = cells.iter().copied();
        cells.filter(|cell| cell.norm.is_none() && cell.operation == operation)
    };
    let mut sizes: Vec<u64> = cells().map(|cell| cell.bytes).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let mut rows = Vec::new();
    for bytes in sizes {
        let of_size = || cells().filter(|cell| cell.bytes == bytes);
        let nccl = |system| {
            let found = of_size().find(|cell| cell.system == system);
            found.map(|cell| cell.us.median)
        };
        let nccl = (nccl(System::Nccl), nccl(System::NcclSymmetric));
        let route = |cell: &Cell| cell.plan.map(|plan| plan.route);
        let mut best = fastest(of_size().filter(|cell| !cell.is_of_nccl()), |cell| {
            (cell.system, cell.placement, route(cell))
        });
        best.sort_by(|a, b| a.us.median.total_cmp(&b.us.median));
        rows.extend(best.into_iter().map(|cell| measurement(cell, nccl)));
    }
    Table::of(title, rows)
}

/// One cell, beside the times of NCCL without and with a symmetric window.
fn measurement(cell: &Cell, nccl: (Option<f64>, Option<f64>)) -> Row {
    let best_nccl = nccl.0.into_iter().chain(nccl.1).reduce(f64::min);
    let (bound, bound_us) = bound(cell);
    let chosen_by = match (cell.system, cell.from_table) {
        (System::BareLaunch, _) => "bare launch",
        (_, true) => "table",
        (_, false) => "forced",
    };
    vec![
        ("size", bytes_text(cell.bytes)),
        ("us", us_text(cell.us.median)),
        ("quartiles", quartiles_text(cell.us)),
        source(cell),
        algorithm(cell.plan),
        grid(cell.plan),
        ("by", chosen_by.to_owned()),
        ("alg GB/s", format!("{:.2}", cell.algorithm_gb_s)),
        ("bus GB/s", format!("{:.2}", cell.bus_gb_s)),
        (bound, us_text(bound_us)),
        ("ratio", ratio(cell.us.median, bound_us)),
        ("NCCL", us_text(nccl.0)),
        ("NCCL sym.", us_text(nccl.1)),
        ("of NCCL", ratio(cell.us.median, best_nccl)),
    ]
}

/// What the time of a cell is compared with: the limit of the machine, or the host's time.
pub(super) fn bound(cell: &Cell) -> (&'static str, Option<f64>) {
    match cell.launch {
        Launch::Graph => ("limit", cell.limit_us),
        Launch::Eager => ("host", cell.host_us),
    }
}

pub(super) fn limits(report: &Report) -> Option<Table> {
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
pub(super) fn builds(report: &Report) -> Option<Table> {
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
pub(super) fn source(cell: &Cell) -> Column {
    let text = cell.placement.map(|placement| match placement {
        Placement::Ordinary => "ordinary",
        Placement::Symmetric => "symmetric",
        Placement::SymmetricInPlace => "in place",
    });
    ("source", or_dash(text.map(str::to_owned)))
}

pub(crate) fn algorithm(plan: Option<Plan>) -> Column {
    let name = plan.map(|plan| plan.route.name().to_owned());
    ("algorithm", or_dash(name))
}

pub(crate) fn grid(plan: Option<Plan>) -> Column {
    ("grid", or_dash(plan.map(grid_text)))
}

/// Lower and upper quartile.
pub(crate) fn quartiles_text(spread: Spread) -> String {
    let (lower, upper) = (spread.lower_quartile, spread.upper_quartile);
    format!("{}..{}", us_text(lower), us_text(upper))
}

/// Blocks and threads.
pub(crate) fn grid_text(plan: Plan) -> String {
    format!("{} x {}", plan.blocks, plan.threads)
}

/// Two decimals below 10, one below 100.
pub(crate) fn us_text(us: impl Into<Option<f64>>) -> String {
    or_dash(us.into().map(|us| match us {
        us if us < 10.0 => format!("{us:.2}"),
        us if us < 100.0 => format!("{us:.1}"),
        us => format!("{us:.0}"),
    }))
}

/// The ratio of two figures, if there are both.
pub(crate) fn ratio(of: impl Into<Option<f64>>, to: impl Into<Option<f64>>) -> String {
    let both = of.into().zip(to.into());
    or_dash(both.map(|(of, to)| format!("{:.3}", of / to)))
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

/// A column's head, and what stands in the column.
type Column = (&'static str, String);

/// What stands in each column.
pub(crate) type Row = Vec<Column>;

impl Table {
    /// `None` without rows. All rows have the same columns.
    pub(crate) fn of(title: String, rows: Vec<Row>) -> Option<Table> {
        let head = rows.first()?.iter().map(|(head, _)| (*head).to_owned());
        let mut lines = vec![head.collect()];
        lines.extend(
            rows.into_iter()
                .map(|row| row.into_iter().map(|(_, entry)| entry).collect()),
        );
        Some(Table { title, lines })
    }

    /// Whether a column's first entry begins with a letter.
    pub(crate) fn is_word(&self, column: usize) -> bool {
        self.lines[1][column].starts_with(|c: char| c.is_alphabetic())
    }

    /// Columns aligned by spaces: words to the left, numbers to the right.
    pub(crate) fn to_text(&self) -> String {
        let mut text = format!("{}\n", self.title);
        for line in &self.lines {
            let mut aligned = String::new();
            for (column, entry) in line.iter().enumerate() {
                let widths = self.lines.iter().map(|line| line[column].len());
                let width = widths.max().unwrap_or(0);
                aligned += &match self.is_word(column) {
                    true => format!("  {entry:<width$}"),
                    false => format!("  {entry:>width$}"),
                };
            }
            text += aligned.trim_end();
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        assert_eq!([1.234, 12.34, 123.4].map(us_text), ["1.23", "12.3", "123"]);
    }
}
