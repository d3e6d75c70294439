//! Models of the protocols in push.cu, move.cu, pull.cu, norm.cu and the files that they include.
//! They are explored exhaustively for small cases: every interleaving of 2 and 3 ranks, and every
//! order in which relaxed stores may become visible. To print the number of states, run `cargo test
//! -p peersum-kernels --test models -- --nocapture`.
//!
//! | file | job |
//! | --- | --- |
//! | `push.rs`, `moves.rs`, `pull.rs`, `norm.rs` | the protocols of the families |
//! | `protocol.rs`, `headers.rs`, `failure.rs` | what they share |
//! | `row_exchange.rs` | what the threads of a row exchange, in one block and in a cluster |
//! | `host.rs` | kernels of a stream, the caller's writes to symmetric buffers, `synchronize` |
//! | `program.rs`, `state.rs` | a case to explore, the state of its run |
//! | `machine.rs` | the machine that runs a case: its threads' places, loads and stores |
//! | `steps.rs` | which steps may come next, and taking one |
//! | `memory.rs` | what stores and loads may do |
//! | `explorer.rs` | the search |
//! | `promises.rs` | what holds in every run |
//! | `controls.rs` | each rule left out, and the run that then breaks a promise |
//! | `move_promises.rs` | the same two of all-gather, reduce-scatter and broadcast |
//! | `norm_promises.rs`, `row_promises.rs` | of calls with RMSNorm, of their rows |
//! | `seats.rs` | when the next kernel may take a seat: a separate model, without data |
//! | `cluster_seats.rs` | where clusters find their seats: another one |
//!
//! Left out:
//! - the values of elements: data is the number of its call;
//! - alignment, except for the scratch memory that it needs;
//! - time: a wait may end at any moment, as if the peer stalled before any of its steps;
//! - who has a seat on a multiprocessor, except in `seats.rs` and `cluster_seats.rs`.
//!
//! `memory.rs` defines how memory behaves.
#![allow(clippy::panic, reason = "a test fails by panicking")]

mod cluster_seats;
mod controls;
mod explorer;
mod failure;
mod headers;
mod host;
mod machine;
mod memory;
mod move_promises;
mod moves;
mod norm;
mod norm_promises;
mod program;
mod promises;
mod protocol;
mod pull;
mod push;
mod row_exchange;
mod row_promises;
mod seats;
mod state;
mod steps;
