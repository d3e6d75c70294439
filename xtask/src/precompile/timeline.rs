//! `--timings`: when each compiler process ran, as a picture for a browser.

use super::progress::Status;
use std::fmt::Write as _;

/// One compiler process.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    /// The module and its target.
    pub(crate) name: String,
    /// How many files it writes.
    pub(crate) files: usize,
    /// How it ended.
    pub(crate) status: Status,
    /// The parallel job that ran it, from 0.
    pub(crate) worker: usize,
    /// When it started, in seconds from the start of the run.
    pub(crate) start_seconds: f64,
    /// How long it took, in seconds.
    pub(crate) seconds: f64,
}

/// The SVG: a row for each job, a bar for each process.
pub(crate) fn picture(jobs: usize, spans: &[Span]) -> String {
    const ROW: usize = 26;
    const LEFT: f64 = 6.0;
    let ends = spans.iter().map(|span| span.start_seconds + span.seconds);
    let end = ends.fold(0.001, f64::max);
    let scale = (99.0 - LEFT) / end;
    let bottom = ROW * jobs;
    let (height, legend) = (bottom + 50, bottom + 40);

    // The background keeps the picture readable on a dark page.
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="1000" height="{height}" role="img"
 aria-label="timeline of the compiler processes">
<style>
text {{ font: 12px sans-serif; fill: #555; }} line {{ stroke: #ddd; }}
rect {{ stroke: #fff; }} .push {{ fill: #4c78a8; }} .pull {{ fill: #f58518; }}
.norm {{ fill: #54a24b; }} .move {{ fill: #79706e; }}
.failed {{ fill: #d62728; }}
</style>
<rect width="100%" height="{height}" fill="#fff"/>
<text x="{LEFT}%" y="{legend}">Each row is a job, each bar a compiler process: blue is push,
 orange is pull, green is norm, grey is move, red has failed.</text>
"##
    );
    for worker in 0..jobs {
        let y = ROW * worker + 17;
        let _ = writeln!(svg, r#"<text x="0" y="{y}">{worker}</text>"#);
    }
    // At most eight ticks, at a round number of seconds.
    let step = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0]
        .into_iter()
        .find(|step| end / step <= 8.0)
        .unwrap_or(100.0);
    for tick in 0..=(end / step) as usize {
        let seconds = tick as f64 * step;
        let x = LEFT + seconds * scale;
        let _ = writeln!(
            svg,
            r#"<line x1="{x:.2}%" y1="0" x2="{x:.2}%" y2="{bottom}"/>
<text x="{x:.2}%" y="{}">{seconds:.1} s</text>"#,
            bottom + 18
        );
    }
    for span in spans {
        let class = match span.status {
            Status::Failed => "failed",
            _ => span.name.split('_').nth(1).unwrap_or_default(),
        };
        let _ = writeln!(
            svg,
            r#"<rect class="{class}" x="{:.2}%" y="{}" width="{:.2}%" height="{}">
<title>{}: {:.2} s</title></rect>"#,
            LEFT + span.start_seconds * scale,
            ROW * span.worker + 2,
            (span.seconds * scale).max(0.1),
            ROW - 4,
            span.name,
            span.seconds
        );
    }
    svg.push_str("</svg>\n");
    svg
}
