//! Latency curves as SVG: both axes logarithmic, one panel for each world size and type.

use std::fmt::Write as _;

use super::report::Report;
use super::series::{self, Kind, Series};
use super::sizes::bytes_text;
use super::table::us_text;

const PANEL_WIDTH: f64 = 680.0;
const PANEL_HEIGHT: f64 = 340.0;
const PANELS_A_ROW: usize = 2;
/// Left, top, right and bottom of the plot within its panel.
const MARGINS: (f64, f64, f64, f64) = (52.0, 34.0, 210.0, 40.0);
/// Distinguishable by people who do not see all colours (Okabe and Ito).
const COLOURS: [&str; 7] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f",
];

/// The picture: every panel of a report.
pub(crate) fn picture(report: &Report) -> String {
    let groups = report.groups();
    let columns = groups.len().clamp(1, PANELS_A_ROW);
    let rows = groups.len().div_ceil(columns).max(1);
    let (width, height) = (
        PANEL_WIDTH * columns as f64,
        PANEL_HEIGHT * rows as f64 + 22.0,
    );
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"11\" role=\"img\">\n\
         <title>Latency of an all-reduce by message size</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    for (index, group) in groups.into_iter().enumerate() {
        let (world_size, _, dtype) = group;
        let x = PANEL_WIDTH * (index % columns) as f64;
        let y = PANEL_HEIGHT * (index / columns) as f64;
        let title = format!("{world_size} ranks, {dtype}: microseconds a call");
        let _ = writeln!(svg, "<g transform=\"translate({x:.0} {y:.0})\">");
        svg += &panel(&title, &series::of(report, group));
        svg += "</g>\n";
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.0}\" y=\"{:.0}\" fill=\"#555555\">{}</text>\n</svg>",
        MARGINS.0,
        height - 8.0,
        escaped(&report.title())
    );
    svg
}

/// One set of axes.
struct Axes {
    /// Logarithms: the least and the greatest.
    x: (f64, f64),
    y: (f64, f64),
}

impl Axes {
    fn new(all: &[Series]) -> Option<Axes> {
        let points = || all.iter().flat_map(|series| &series.points);
        let range = |values: &mut dyn Iterator<Item = f64>| {
            values.fold(
                (f64::INFINITY, f64::NEG_INFINITY),
                |(least, most), value| (least.min(value), most.max(value)),
            )
        };
        points().next()?;
        let (x, y) = (
            range(&mut points().map(|point| (point.bytes.max(1) as f64).ln())),
            range(&mut points().map(|point| point.us.max(0.01).ln())),
        );
        // Some air around the curves.
        let air = |(least, most): (f64, f64), below: f64, above: f64| {
            let span = (most - least).max(0.7);
            (least - below * span, most + above * span)
        };
        Some(Axes {
            x: air(x, 0.03, 0.03),
            y: air(y, 0.06, 0.08),
        })
    }

    fn x(&self, bytes: u64) -> f64 {
        let part = ((bytes.max(1) as f64).ln() - self.x.0) / (self.x.1 - self.x.0);
        MARGINS.0 + part * (PANEL_WIDTH - MARGINS.0 - MARGINS.2)
    }

    fn y(&self, us: f64) -> f64 {
        let part = (us.max(0.01).ln() - self.y.0) / (self.y.1 - self.y.0);
        PANEL_HEIGHT - MARGINS.3 - part * (PANEL_HEIGHT - MARGINS.1 - MARGINS.3)
    }
}

/// One panel, without its place.
pub(crate) fn panel(title: &str, all: &[Series]) -> String {
    let Some(axes) = Axes::new(all) else {
        return String::new();
    };
    let (left, top, right, bottom) = (
        MARGINS.0,
        MARGINS.1,
        PANEL_WIDTH - MARGINS.2,
        PANEL_HEIGHT - MARGINS.3,
    );
    let mut svg = format!(
        "<text x=\"{left:.0}\" y=\"20\" font-size=\"13\" font-weight=\"600\" fill=\"#222222\">{}</text>\n",
        escaped(title)
    );
    let mut sizes: Vec<u64> = all
        .iter()
        .flat_map(|series| series.points.iter().map(|point| point.bytes))
        .collect();
    sizes.sort_unstable();
    sizes.dedup();
    // No more labels than fit.
    for bytes in sizes.iter().step_by(sizes.len().div_ceil(10).max(1)) {
        let x = axes.x(*bytes);
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{top:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" stroke=\"#e5e5e5\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555555\">{}</text>",
            bottom + 16.0,
            bytes_text(*bytes)
        );
    }
    let steps = (-2..7).flat_map(|power| [1.0, 2.0, 5.0].map(|step| step * 10_f64.powi(power)));
    for us in steps.filter(|us| (axes.y.0..=axes.y.1).contains(&us.ln())) {
        let y = axes.y(us);
        let _ = writeln!(
            svg,
            "<line x1=\"{left:.1}\" y1=\"{y:.1}\" x2=\"{right:.1}\" y2=\"{y:.1}\" stroke=\"#e5e5e5\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555555\">{us}</text>",
            left - 6.0,
            y + 4.0
        );
    }
    let _ = writeln!(
        svg,
        "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"none\" stroke=\"#999999\"/>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555555\">message, bytes</text>",
        right - left,
        bottom - top,
        (left + right) / 2.0,
        bottom + 32.0
    );
    for (index, series) in all.iter().enumerate() {
        let (colour, dash) = match series.kind {
            Kind::Limit => ("#000000", " stroke-dasharray=\"2 3\""),
            Kind::Graph => (COLOURS[index % COLOURS.len()], ""),
            Kind::Eager => (COLOURS[index % COLOURS.len()], " stroke-dasharray=\"7 4\""),
        };
        let line: Vec<String> = series
            .points
            .iter()
            .map(|point| format!("{:.1},{:.1}", axes.x(point.bytes), axes.y(point.us)))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\"{dash} points=\"{}\"/>",
            line.join(" ")
        );
        for point in &series.points {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"><title>{}</title></circle>",
                axes.x(point.bytes),
                axes.y(point.us),
                escaped(&format!(
                    "{}, {}: {} us ({})",
                    series.name,
                    bytes_text(point.bytes),
                    us_text(point.us),
                    point.note
                ))
            );
        }
        // The legend stands beside the plot: no corner of it is always free.
        let y = top + 14.0 + 15.0 * index as f64;
        let _ = writeln!(
            svg,
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" stroke-width=\"1.8\"{dash}/>\
             <text x=\"{:.1}\" y=\"{y:.1}\" fill=\"#222222\">{}</text>",
            right + 12.0,
            y - 4.0,
            right + 36.0,
            y - 4.0,
            right + 42.0,
            escaped(&series.name)
        );
    }
    svg
}

/// Text as XML and HTML take it.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            other => escaped.push(other),
        }
    }
    escaped
}
