//! How long a manifest takes to read:
//! `cargo run --release -p peersum-artifact --example read_manifest -- target/cubins/manifest.json`

use std::time::Instant;

use peersum_artifact::Manifest;

const ROUNDS: usize = 101;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("name a manifest.json")?;
    let text = std::fs::read_to_string(path)?;
    let mut times = Vec::new();
    let mut modules = 0;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        modules = Manifest::parse(&text)?.modules.len();
        times.push(begun.elapsed());
    }
    times.sort();
    println!(
        "{modules} modules in {:?}, the median of {ROUNDS}",
        times[ROUNDS / 2]
    );
    Ok(())
}
