//! Models of the protocols in push.cu, pull.cu and what they share, explored exhaustively for small cases: every interleaving of 2 and 3 ranks, and every
//! order in which relaxed stores may become visible. `cargo test -p peersum-kernels --test models -- --nocapture` prints how many states that are.
//!
//! | file | job |
//! | --- | --- |
//! | `push.rs`, `pull.rs`, `protocol.rs` with `headers.rs` and `failure.rs` | the protocols, under the kernels' names |
//! | `host.rs` | kernels of a stream, the caller's writes to symmetric buffers, `synchronize` |
//! | `machine.rs`, `steps.rs`, `memory.rs`, `explorer.rs` | what is explored, which steps may come next, what stores and loads may do, the search |
//! | `promises.rs` | what holds in every run |
//! | `controls.rs` | each rule left out, and the run that breaks a promise then |
//! | `seats.rs` | when the next kernel may take a seat: a model of its own, without data |
//!
//! What is left out: the values of elements (data is the number of its call), alignment but for the scratch memory it needs, the lapse of time (a wait may end at
//! any moment, which is a peer that stalls before any of its steps), and, but in seats.rs, who has a seat on a multiprocessor. Memory is what memory.rs says.
#![allow(clippy::panic, reason = "a test fails by panicking")]

mod controls;
mod explorer;
mod failure;
mod headers;
mod host;
mod machine;
mod memory;
mod promises;
mod protocol;
mod pull;
mod push;
mod seats;
mod steps;

use machine::{Call, Kind};

const KINDS: [Kind; 6] = [
    Kind::PushOneShot,
    Kind::PushTwoShot,
    Kind::PullOneShot,
    Kind::PullTwoShot,
    Kind::SymmetricOneShot,
    Kind::SymmetricTwoShot,
];

/// A call on a grid of `blocks`, of two places: with two blocks each has one, with one block it has both.
fn call(kind: Kind, blocks: usize) -> Call {
    Call {
        kind,
        blocks,
        places: 2,
        detail: 0,
    }
}

/// A call of one block and one place.
fn small(kind: Kind) -> Call {
    Call {
        kind,
        blocks: 1,
        places: 1,
        detail: 0,
    }
}
