//! Random numbers that can be repeated. Shared by the test programs.

/// A generator whose seed is printed: `PEERSUM_TEST_SEED` repeats a run.
pub(crate) fn seeded() -> fastrand::Rng {
    let seed = std::env::var("PEERSUM_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("PEERSUM_TEST_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}
