//! A report as one self-contained page: the charts, then what is printed.

use std::fmt::Write as _;

use super::chart::{escaped, picture};
use super::report::Report;
use super::tables;

const STYLE: &str = "body{font:14px/1.45 system-ui,sans-serif;margin:1.5rem auto;\
    max-width:75rem;padding:0 1rem}h1{font-size:1.4rem}svg{max-width:100%;height:auto}\
    pre{overflow-x:auto}";

/// The page.
pub(crate) fn page(report: &Report) -> String {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>peersum: all-reduce</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <h1>All-reduce: {}</h1>\n",
        escaped(&report.title())
    );
    let nccl = match &report.run.nccl {
        Some(version) => format!("NCCL {} was measured in the same run.", escaped(version)),
        None => "NCCL was not measured.".to_owned(),
    };
    let _ = writeln!(
        html,
        "<p>Each rank is a thread of one process. Each figure is the median of {} replays of a \
         graph of {} calls, or of as many batches of eager calls. Each rank measures with its own \
         events; the time of a replay is that of the rank that started last. Bandwidths are \
         defined as in nccl-tests. {nccl} Hover over a point for its figures.</p>",
        report.run.replays, report.calls
    );
    html += &picture(report);
    let _ = writeln!(html, "<pre>{}</pre>", escaped(&tables::to_text(report)));
    html += "</body>\n</html>\n";
    html
}
