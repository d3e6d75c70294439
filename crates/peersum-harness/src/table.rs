//! Tables in plain text.

use peersum::dispatch::Plan;

use crate::bench::timing::Spread;

/// Lines of text, the first of which is the head.
pub(crate) struct Table {
    title: String,
    lines: Vec<Vec<String>>,
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

pub(crate) fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

/// A column's head, and what stands in the column.
pub(crate) type Column = (&'static str, String);

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
    fn is_word(&self, column: usize) -> bool {
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
