//! What a report of layers was measured on.

use crate::bench::report::Run;

/// The machine and the libraries, and what was not measured.
pub(super) fn heading(run: &Run, world_size: u32, pdl: bool, cublas: &str) -> String {
    format!(
        "# {} x {}, {world_size} ranks, bf16, programmatic dependent launch {}; peersum {}, {}; \
         cuBLAS {cublas}, NCCL {}\n{}",
        run.device,
        run.devices,
        if pdl { "on" } else { "off" },
        run.peersum,
        run.toolkit,
        run.nccl.as_deref().unwrap_or("not measured"),
        run.remarks(),
    )
}

/// A run for tests of what is printed.
#[cfg(test)]
pub(super) fn made_up_run() -> Run {
    Run {
        schema: 1,
        peersum: "0.1.0".to_owned(),
        toolkit: "nvcc 13.0".to_owned(),
        device: "a made up card".to_owned(),
        devices: 2,
        replays: 3,
        nccl: Some("2.28.9".to_owned()),
        notes: Vec::new(),
        failures: Vec::new(),
    }
}
