//! What dist prints while it works.

use std::time::Instant;

/// Says on stderr what was done and how long it took.
pub(super) fn progress(begun: Instant, what: &str) {
    eprintln!("{what} in {:.1} s", begun.elapsed().as_secs_f64());
}
