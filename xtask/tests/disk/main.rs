//! precompile, the toolchain's install and dist on disks that fill up, that may not be written and
//! that fail, and killed at every change they make: the next run repairs what is there or says what
//! is wrong, and no file passes for what it is not.

#![allow(missing_docs)]
// The helpers of the tests, which are not test functions themselves, fail a test by panicking too.
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
