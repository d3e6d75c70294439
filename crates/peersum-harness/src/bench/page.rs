//! A report as one self-contained page: the charts, then the tables.

use std::fmt::Write as _;

use super::chart::{escaped, pictures};
use super::report::Report;
use super::table::Table;
use super::tables::tables;

const STYLE: &str = "\
body{font:14px/1.45 system-ui,sans-serif;color:#222;background:#fff;margin:1.5rem auto;\
max-width:75rem;padding:0 1rem}\
h1{font-size:1.4rem}h2{font-size:1.05rem;margin-top:2rem}\
svg{max-width:100%;height:auto;vertical-align:top}\
.scroll{overflow-x:auto}table{border-collapse:collapse}\
th,td{padding:.15rem .6rem;text-align:right;border-bottom:1px solid #e5e5e5;white-space:nowrap;\
font-variant-numeric:tabular-nums}\
th{border-bottom:1px solid #999}td.word,th.word{text-align:left}";

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
    for note in &report.run.notes {
        let _ = writeln!(html, "<p>Note: {}</p>", escaped(note));
    }
    for failure in &report.run.failures {
        let _ = writeln!(html, "<p>Failed: {}</p>", escaped(failure));
    }
    html += &pictures(report).concat();
    for table in tables(report) {
        html += &table_html(&table);
    }
    html += "</body>\n</html>\n";
    html
}

fn table_html(table: &Table) -> String {
    let class = |column: usize| match table.is_word(column) {
        true => " class=\"word\"",
        false => "",
    };
    let mut html = format!(
        "<h2>{}</h2>\n<div class=\"scroll\"><table>\n",
        escaped(&table.title)
    );
    for (index, line) in table.lines.iter().enumerate() {
        let tag = if index == 0 { "th" } else { "td" };
        html += "<tr>";
        for (column, entry) in line.iter().enumerate() {
            let _ = write!(html, "<{tag}{}>{}</{tag}>", class(column), escaped(entry));
        }
        html += "</tr>\n";
    }
    html += "</table></div>\n";
    html
}
