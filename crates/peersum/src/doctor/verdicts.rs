//! What is said of a driver, of GPUs and of what they do with each other.

use peersum_artifact::{Arch, CudaVersion};

use super::driver;
use super::exchange::Exchanged;
use super::machine::Traces;
use super::report::{ComputeMode, Finding, GpuFacts, LinkFacts, Subject, Verdict};
use super::trial::Reduced;
use crate::cuda::start::{RESTART, TOOLKIT_MAJOR, Trouble, update_hint};
use crate::device::DeviceError;
use crate::error::Error;

/// What came of sharing memory between two ranks.
pub(super) enum Shared {
    /// By file descriptors, and every byte arrived.
    Right([Exchanged; 2]),
    /// By file descriptors, and some did not.
    Wrong([Exchanged; 2]),
    /// Not by file descriptors, and the reason, but by address.
    ByAddress(String),
    /// In no way; why not by file descriptors.
    Failed(String),
}

impl Shared {
    pub(super) fn finding(&self, blocking: bool) -> Finding {
        match self {
            Shared::Right(_) => Finding::new(Subject::SharedMemory, Verdict::Works, ""),
            Shared::Wrong(exchanged) => {
                let direction = |rank: usize| {
                    let yes_no = |arrived| if arrived { "arrived" } else { "did NOT arrive" };
                    format!(
                        "bytes that rank {rank} wrote to its peer {}, bytes that it read {}",
                        yes_no(exchanged[rank].wrote),
                        yes_no(exchanged[rank].read)
                    )
                };
                Finding::new(
                    Subject::SharedMemory,
                    Verdict::Not,
                    format!(
                        "memory was mapped, but the data is wrong: {}; \
                    {}",
                        direction(0),
                        direction(1)
                    ),
                )
                .meaning(
                    "do not run peersum or NCCL's peer-to-peer transport on these GPUs. On \
                    many hosts the IOMMU or PCIe access control \
                     redirects such traffic: switch it off in the firmware or with `iommu=pt`, \
                     or keep these GPUs in separate groups",
                )
                .blocking(blocking)
            }
            Shared::ByAddress(reason) => {
                Finding::new(Subject::SharedMemory, Verdict::Slower, reason).meaning(
                    "ranks fall back to legacy CUDA IPC, which needs common PID and IPC \
                namespaces. A newer driver, or a sandbox that lets \
                 descriptors of the driver pass, has the better way",
                )
            }
            Shared::Failed(reason) => Finding::new(Subject::SharedMemory, Verdict::Not, reason)
                .meaning("no group can hold ranks on both")
                .blocking(blocking),
        }
    }
}

pub(super) fn trouble_finding(trouble: &Trouble, traces: Traces) -> Finding {
    let finding = Finding::new(Subject::Driver, Verdict::Not, trouble.to_string());
    match trouble {
        Trouble::Missing(DeviceError::LibraryMissing { library, help }) => {
            let seen = format!("{library} was not found");
            let missing = Finding::new(Subject::Driver, Verdict::Not, seen);
            if traces.device_node {
                missing
                    .meaning(format!(
                        "this process was given a GPU (/dev/nvidia*) without the \
                    driver's library: {help}"
                    ))
                    .blocking(true)
            } else if traces.on_the_bus {
                missing.meaning(format!(
                    "there is an NVIDIA GPU on the PCI bus, which this \
                process cannot use: {help}"
                ))
            } else {
                missing.meaning("there is no sign of an NVIDIA GPU either, so nothing is amiss")
            }
        }
        Trouble::NoDevice(_) if traces.hidden => {
            finding.meaning("CUDA_VISIBLE_DEVICES hides them, if there are any")
        }
        Trouble::NoDevice(_) if traces.device_node => finding
            .meaning(format!(
                "there are device nodes of GPUs (/dev/nvidia*): {RESTART}"
            ))
            .blocking(true),
        Trouble::NoDevice(_) => finding.meaning(format!(
            "nothing is amiss if there is none; {}",
            trouble.remedy()
        )),
        Trouble::Stub(_)
        | Trouble::NoVersion(_)
        | Trouble::TooOld(_)
        | Trouble::Incomplete { .. }
        | Trouble::Missing(_)
        | Trouble::Refused(..) => finding.meaning(trouble.remedy()).blocking(true),
    }
}

pub(super) fn driver_finding(version: CudaVersion) -> Finding {
    let module = driver::kernel_module().map_or_else(String::new, |module| {
        format!(
            ", kernel \
    module {module}"
        )
    });
    let seen = format!("CUDA {version}{module}");
    if version.major < TOOLKIT_MAJOR {
        Finding::new(Subject::Driver, Verdict::Slower, seen).meaning(format!(
            "cubins of CUDA {TOOLKIT_MAJOR}, which releases carry, do not load: {}; or compile \
            ahead of time with a toolkit of CUDA {}",
            update_hint(TOOLKIT_MAJOR),
            version.major
        ))
    } else {
        Finding::new(Subject::Driver, Verdict::Works, seen)
    }
}

pub(super) fn gpu_finding(gpu: &GpuFacts, new_enough: bool) -> Finding {
    let seen = format!(
        "{}, compute capability {}, {:.0} GiB, {} multiprocessors, {}, PCI {}",
        gpu.name,
        gpu.compute_capability,
        gpu.memory_bytes as f64 / f64::from(1 << 30),
        gpu.multiprocessors,
        gpu.uuid,
        gpu.pci_bus_id
    );
    let (verdict, meaning) = if !new_enough {
        (
            Verdict::Not,
            format!(
                "kernels are compiled for compute capability {}.{} and \
            newer",
                Arch::OLDEST.major,
                Arch::OLDEST.minor
            ),
        )
    } else {
        match (gpu.compute_mode, gpu.mig) {
            (ComputeMode::Prohibited, _) => (
                Verdict::Not,
                format!(
                    "its compute mode lets no process in: `nvidia-smi -i {} -c \
                DEFAULT`",
                    gpu.pci_bus_id
                ),
            ),
            (ComputeMode::ExclusiveProcess, _) => (
                Verdict::Slower,
                "its compute mode lets one process in: one rank a GPU works, ranks that are \
                processes cannot share it"
                    .to_owned(),
            ),
            (_, true) => (
                Verdict::Slower,
                "a part of a GPU (MIG): a process sees one part, and parts cannot reach each \
                other's memory, so only ranks on this part can form a group"
                    .to_owned(),
            ),
            _ => (Verdict::Works, String::new()),
        }
    };
    Finding::new(Subject::Gpu, verdict, seen)
        .on([gpu.ordinal])
        .meaning(meaning)
}

pub(super) fn multicast_finding(gpus: &[GpuFacts]) -> Finding {
    let with = gpus.iter().filter(|gpu| gpu.multicast).count();
    Finding::new(
        Subject::Multicast,
        Verdict::Works,
        format!("{with} of {} GPUs have NVLink multicast", gpus.len()),
    )
    .meaning("peersum does not use it")
}

pub(super) fn shared_finding(right: &[([u32; 2], [Exchanged; 2])], pairs: usize) -> Finding {
    let rates = || {
        right
            .iter()
            .flat_map(|(_, exchanged)| exchanged.iter().map(|rank| rank.gigabytes_per_second))
    };
    let rate = format!(
        "{:.1} to {:.1} GB/s in each direction at once",
        rates().fold(f64::INFINITY, f64::min),
        rates().fold(0.0, f64::max)
    );
    let mut gpus: Vec<u32> = right.iter().flat_map(|(pair, _)| *pair).collect();
    gpus.sort_unstable();
    gpus.dedup();
    let arrived = "as file descriptors; random bytes arrived, written and read, from either side";
    let seen = match (gpus.len(), pairs) {
        (1, _) => {
            "as file descriptors; random bytes arrived both ways between two ranks".to_owned()
        }
        (_, 1) => format!("{arrived}: {rate}"),
        (_, _) => format!("{arrived} in {} of {pairs} pairs: {rate}", right.len()),
    };
    Finding::new(Subject::SharedMemory, Verdict::Works, seen).on(gpus)
}

/// One finding for each kind of link that there is.
pub(super) fn link_findings(links: &[LinkFacts]) -> Vec<Finding> {
    type Kind = (Verdict, &'static str, &'static str, fn(&LinkFacts) -> bool);
    let kinds: [Kind; 3] = [
        (
            Verdict::Works,
            "NVLink (peer access with native atomics)",
            "",
            |link| link.access && link.native_atomics,
        ),
        (
            Verdict::Slower,
            "PCIe (peer access without native atomics)",
            "calls work and take longer than over NVLink, large ones most: see the measured rate",
            |link| link.access && !link.native_atomics,
        ),
        (
            Verdict::Not,
            "no peer access, the driver says",
            "no group can hold ranks on both. `nvidia-smi topo -p2p rw` shows more; in a \
            virtual machine peer access may be off, and on some \
             hosts the IOMMU or PCIe access control forbids it",
            |link| !link.access,
        ),
    ];
    let one_way = |link: &&LinkFacts| link.from < link.to;
    let all = links.iter().filter(one_way).count();
    kinds
        .into_iter()
        .filter_map(|(verdict, kind, meaning, is)| {
            let pairs: Vec<&LinkFacts> = links
                .iter()
                .filter(one_way)
                .filter(|link| is(link))
                .collect();
            if pairs.is_empty() {
                return None;
            }
            let which = if all > 1 && pairs.len() == all {
                format!("all {all} pairs")
            } else {
                let pairs: Vec<String> = pairs
                    .iter()
                    .map(|link| format!("{}-{}", link.from, link.to))
                    .collect();
                pairs.join(", ")
            };
            Some(
                Finding::new(
                    Subject::Links,
                    verdict,
                    format!(
                        "{kind}: \
            {which}"
                    ),
                )
                .meaning(meaning),
            )
        })
        .collect()
}

pub(super) fn reduced_finding(
    world_size: usize,
    outcome: Result<Reduced, (usize, Error)>,
) -> Finding {
    match outcome {
        Ok(Reduced { calls, wrong: 0 }) => Finding::new(
            Subject::AllReduce,
            Verdict::Works,
            format!(
                "{world_size} ranks, {calls} calls of different sizes, every bit as the \
            reference has it"
            ),
        ),
        Ok(Reduced { calls, wrong }) => Finding::new(
            Subject::AllReduce,
            Verdict::Not,
            format!(
                "{world_size} ranks: {wrong} of {} results differ from the \
            reference",
                calls * world_size
            ),
        )
        .meaning(
            "do not use peersum on these GPUs; run `cargo xtask test-allreduce` and \
        report what it says",
        )
        .blocking(true),
        Err((rank, error)) => Finding::new(
            Subject::AllReduce,
            Verdict::Not,
            format!("{world_size} ranks, on rank {rank}: {error}"),
        )
        .blocking(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(from: u32, to: u32, access: bool, native_atomics: bool) -> LinkFacts {
        LinkFacts {
            from,
            to,
            access,
            native_atomics,
            performance_rank: 0,
            data_arrived: None,
            gigabytes_per_second: None,
        }
    }

    #[test]
    fn each_kind_of_link_is_named_once_with_its_pairs() {
        let both = |one: u32, other: u32, access, atomics| {
            [
                link(one, other, access, atomics),
                link(other, one, access, atomics),
            ]
        };
        let links: Vec<LinkFacts> = [
            both(0, 1, true, true),
            both(0, 2, true, false),
            both(1, 2, false, false),
        ]
        .concat();
        let findings = link_findings(&links);
        let seen: Vec<(Verdict, &str)> = findings
            .iter()
            .map(|finding| (finding.verdict, finding.seen.as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                (
                    Verdict::Works,
                    "NVLink (peer access with native atomics): 0-1"
                ),
                (
                    Verdict::Slower,
                    "PCIe (peer access without native atomics): 0-2"
                ),
                (Verdict::Not, "no peer access, the driver says: 1-2"),
            ]
        );
        let nvlink: Vec<LinkFacts> = [both(0, 1, true, true), both(0, 2, true, true)].concat();
        assert!(link_findings(&nvlink)[0].seen.ends_with(": all 2 pairs"));
    }

    #[test]
    fn one_wrong_bit_in_a_sum_makes_the_machine_unusable() {
        let right = reduced_finding(8, Ok(Reduced { calls: 3, wrong: 0 }));
        assert_eq!((right.verdict, right.blocking), (Verdict::Works, false));
        let wrong = reduced_finding(8, Ok(Reduced { calls: 3, wrong: 1 }));
        assert_eq!((wrong.verdict, wrong.blocking), (Verdict::Not, true));
        assert!(wrong.seen.contains("1 of 24 results"));
    }

    #[test]
    fn traces_of_a_gpu_decide_whether_a_missing_driver_is_amiss() {
        let trouble = Trouble::Missing(DeviceError::LibraryMissing {
            library: "libcuda.so.1".to_owned(),
            help: "install it".to_owned(),
        });
        let with = |device_node, on_the_bus| {
            let traces = Traces {
                device_node,
                on_the_bus,
                hidden: false,
            };
            trouble_finding(&trouble, traces)
        };
        let none = with(false, false);
        assert!(!none.blocking && none.meaning.contains("nothing is amiss"));
        // A container sees its host's bus, whether or not it was given the GPU.
        let bus = with(false, true);
        assert!(!bus.blocking && bus.meaning.contains("install it"));
        assert!(with(true, true).blocking);
    }
}
