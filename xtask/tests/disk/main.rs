//! precompile, the toolchain's install and dist on disks that are full, read-only or faulty, and
//! killed at every change they make. The next run repairs what is there or says what is wrong, and
//! no damaged file is accepted.

#![allow(missing_docs)]
// Helpers that are not test functions themselves may panic too: it fails the test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../precompile/checkout.rs"]
#[allow(dead_code, reason = "another test program uses the rest of it")]
mod checkout;
#[cfg(feature = "dist")]
mod dist;
mod faulty_disk;
#[path = "../toolchain/machine.rs"]
#[allow(dead_code, reason = "another test program uses the rest of it")]
mod machine;
mod precompile;
#[cfg(feature = "dist")]
#[path = "../dist/checkout.rs"]
#[allow(dead_code, reason = "another test program uses the rest of it")]
mod release;
#[cfg(feature = "dist")]
#[path = "../seeded/mod.rs"]
mod seeded;
mod small_disk;
mod toolchain;
