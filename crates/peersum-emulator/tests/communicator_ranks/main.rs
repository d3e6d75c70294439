//! The communicator on the emulator: results, graphs, failures, set-up, processes, examples.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod examples;
mod failures;
mod graphs;
mod processes;
mod results;
mod setup;
mod stage;
