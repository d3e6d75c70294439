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
