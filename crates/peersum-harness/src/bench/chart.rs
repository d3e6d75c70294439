//! Charts as SVG, one panel for each world size and type: the time of each call relative to the
//! limit of the machine, on a linear axis, by message size on a logarithmic one.

use super::report::Report;
use super::series::{self, Series};
use super::sizes::bytes_text;
use super::timing::Launch;
use crate::table::us_text;

const WIDTH: f64 = 460.0;
/// The borders of the plot within its panel.
const LEFT: f64 = 40.0;
const RIGHT: f64 = WIDTH - 14.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 250.0;
/// The baseline of the legend's first line, and the distance to the next one.
const LEGEND: f64 = BOTTOM + 70.0;
const LEGEND_LINE: f64 = 16.0;
const PANELS_A_ROW: usize = 2;
/// Distinguishable by people who do not see all colours (Okabe and Ito).
const COLOURS: [&str; 7] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f",
];

/// All panels of a report as one picture.
pub(crate) fn picture(report: &Report) -> String {
    let groups = report.groups().into_iter();
    let panels: Vec<_> = groups
        .map(|group| (group, series::of(report, group)))
        .collect();
    let most = panels.iter().map(|(_, all)| all.len()).max().unwrap_or(0);
    let height = LEGEND + LEGEND_LINE * most as f64;
    let columns = panels.len().clamp(1, PANELS_A_ROW);
    let whole_width = WIDTH * columns as f64;
    let whole_height = height * panels.len().div_ceil(columns) as f64 + 24.0;
    let mut inner = String::new();
    for (index, ((world_size, _, dtype), all)) in panels.iter().enumerate() {
        let x = WIDTH * (index % columns) as f64;
        let y = height * (index / columns) as f64;
        let body = panel(&format!("{world_size} ranks, {dtype}"), all);
        inner += &format!("<g transform=\"translate({x} {y})\">\n{body}</g>\n");
    }
    inner += &text(LEFT, whole_height - 8.0, "start", &report.title());
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{whole_width}\" \
         height=\"{whole_height}\" viewBox=\"0 0 {whole_width} {whole_height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"11\" fill=\"#444444\" role=\"img\">\n\
         <title>Time of an all-reduce by message size</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{inner}</svg>\n"
    )
}

/// Draws the axes, the curves and the legend.
fn panel(title: &str, all: &[Series]) -> String {
    let points = || all.iter().flat_map(|series| &series.points);
    let mut sizes: Vec<u64> = points().map(|point| point.bytes).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let limit = all.iter().find(|series| series.launch.is_none());
    // Without a measured limit the fastest call of a size takes its place.
    let unit = |bytes: u64| {
        let candidates = limit.map_or(all, std::slice::from_ref);
        let points = candidates.iter().flat_map(|series| &series.points);
        let of_size = points.filter(|point| point.bytes == bytes);
        of_size.map(|point| point.us).fold(f64::NAN, f64::min)
    };
    let ratios = points().map(|point| point.us / unit(point.bytes));
    let greatest = ratios.fold(1.0, f64::max);
    let (first, last) = (sizes.first(), sizes.last());
    let log = |bytes: Option<&u64>| bytes.map_or(0.0, |&bytes| (bytes.max(1) as f64).ln());
    let span = (log(last) - log(first)).max(1.0);
    let x = |bytes: u64| {
        let part = (log(Some(&bytes)) - log(first)) / span;
        LEFT + 18.0 + part * (RIGHT - LEFT - 36.0)
    };
    let y = |ratio: f64| BOTTOM - (BOTTOM - TOP) * ratio / (greatest * 1.06);

    let (unit_name, under) = match limit {
        Some(_) => ("limit", "the limit"),
        None => ("fastest call", "the fastest call"),
    };
    let heading = format!("{title}: time relative to the {unit_name}");
    let mut body = format!(
        "<g font-size=\"13\" font-weight=\"600\">{}</g>",
        text(LEFT, 20.0, "start", &heading)
    );
    // No more labels than fit.
    for &bytes in sizes.iter().step_by(sizes.len().div_ceil(8).max(1)) {
        body += &line(x(bytes), TOP, x(bytes), BOTTOM, "stroke=\"#e5e5e5\"");
        body += &text(x(bytes), BOTTOM + 16.0, "middle", &bytes_text(bytes));
        body += &text(x(bytes), BOTTOM + 30.0, "middle", &us_text(unit(bytes)));
    }
    let steps = [0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0];
    let step = steps.into_iter().find(|step| greatest / step <= 8.0);
    let step = step.unwrap_or(greatest.ceil());
    for tick in 0..=(greatest / step) as u32 {
        let ratio = f64::from(tick) * step;
        body += &line(LEFT, y(ratio), RIGHT, y(ratio), "stroke=\"#e5e5e5\"");
        body += &text(LEFT - 6.0, y(ratio) + 4.0, "end", &ratio.to_string());
    }
    let axis = format!("message in bytes; below it {under} in microseconds");
    body += &text((LEFT + RIGHT) / 2.0, BOTTOM + 48.0, "middle", &axis);
    let place = |bytes, us: f64| (x(bytes), y(us / unit(bytes)));
    for (index, series) in all.iter().enumerate() {
        body += &curve(index, series, place);
    }
    body
}

/// Draws one curve and its line of the legend. `place` gives a point's place by bytes and time.
fn curve(index: usize, series: &Series, place: impl Fn(u64, f64) -> (f64, f64)) -> String {
    let (colour, dash) = match series.launch {
        None => ("#000000", "2 3"),
        Some(Launch::Graph) => (COLOURS[index % COLOURS.len()], "none"),
        Some(Launch::Eager) => (COLOURS[index % COLOURS.len()], "7 4"),
    };
    // Later curves are thinner, so that they do not hide equal ones below them.
    let width = (4.5 - index as f64).max(1.5);
    let style = format!(
        "stroke=\"{colour}\" stroke-width=\"{width}\" stroke-dasharray=\"{dash}\" fill=\"none\""
    );
    let mut places = String::new();
    let mut marks = String::new();
    for point in &series.points {
        let (x, y) = place(point.bytes, point.us);
        places += &format!("{x:.1},{y:.1} ");
        let (size, us) = (bytes_text(point.bytes), us_text(point.us));
        let said = format!("{}, {size}: {us} us ({})", series.name, point.note);
        marks += &format!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{:.1}\" fill=\"{colour}\">\
             <title>{}</title></circle>\n",
            width / 2.0 + 1.5,
            escaped(&said)
        );
    }
    let baseline = LEGEND + LEGEND_LINE * index as f64;
    let mut body = format!("<polyline points=\"{}\" {style}/>\n{marks}", places.trim());
    body += &line(LEFT, baseline - 4.0, LEFT + 26.0, baseline - 4.0, &style);
    body += &text(LEFT + 34.0, baseline, "start", &series.name);
    body
}

fn line(x1: f64, y1: f64, x2: f64, y2: f64, style: &str) -> String {
    format!("<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" {style}/>\n")
}

fn text(x: f64, y: f64, anchor: &str, text: &str) -> String {
    let text = escaped(text);
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>\n")
}

/// Text as XML and HTML take it.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
