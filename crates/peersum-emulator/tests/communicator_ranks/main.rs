//! The communicator on the emulator: results, graphs, failures, set-up, processes, examples.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod clusters;
mod collective_failures;
mod collectives;
mod disagreements;
mod edges;
mod examples;
mod failures;
mod forgeries;
mod fp8;
mod fp8_quotients;
mod graphs;
mod norm_sides;
mod norm_tables;
mod norms;
mod parts;
mod pieces;
mod processes;
mod results;
mod seats;
mod setup;
mod slots;
mod stage;
