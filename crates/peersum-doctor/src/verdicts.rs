//! The findings about a driver, about GPUs and their links, and about memory that they share.

use peersum::cuda::diagnosis::{RESTART, TOOLKIT_MAJOR, Trouble};
use peersum::device::DeviceError;
use peersum::loader::update_hint;
use peersum_artifact::{Arch, CudaVersion};

use crate::exchange::Exchanged;
use crate::machine::Traces;
use crate::report::{ComputeMode, Finding, GpuFacts, LinkFacts, Subject, Verdict};

/// Memory was shared, and some bytes did not arrive.
pub(crate) fn wrong_data(exchanged: &[Exchanged]) -> Finding {
    let yes_no = |arrived| if arrived { "arrived" } else { "did NOT arrive" };
    let directions: Vec<String> = (0..)
        .zip(exchanged)
        .map(|(rank, exchanged): (u32, _)| {
            format!(
                "bytes that rank {rank} wrote to its peer {}, bytes that it read {}",
                yes_no(exchanged.wrote),
                yes_no(exchanged.read)
            )
        })
        .collect();
    let seen = format!(
        "memory was mapped, but the data is wrong: {}",
        directions.join("; ")
    );
    Finding::not(Subject::SharedMemory, seen).meaning(
        "do not run peersum or NCCL's peer-to-peer transport on these GPUs. On many hosts the \
         IOMMU or PCIe access control redirects such traffic: switch it off in the firmware or \
         with `iommu=pt`, or keep these GPUs in separate groups",
    )
}

/// Memory was shared not by file descriptors, for this reason, but by address.
pub(crate) fn shared_by_address(reason: &str) -> Finding {
    Finding::slower(Subject::SharedMemory, reason).meaning(
        "ranks fall back to legacy CUDA IPC, which needs common PID and IPC namespaces. For file \
         descriptors use a newer driver, or a sandbox that lets descriptors of the driver pass",
    )
}

/// Memory was shared in no way.
pub(crate) fn unshared(reason: String) -> Finding {
    Finding::not(Subject::SharedMemory, reason).meaning("a group cannot have ranks on both")
}

pub(crate) fn trouble_finding(trouble: &Trouble, traces: Traces) -> Finding {
    let mut finding = Finding::not(Subject::Driver, trouble);
    let (meaning, blocking) = match trouble {
        Trouble::Missing(DeviceError::LibraryMissing { library, help }) => {
            finding.seen = format!("{library} was not found");
            if traces.device_node {
                let given = "this process was given a GPU (/dev/nvidia*) without the driver's \
                             library";
                (format!("{given}: {help}"), true)
            } else if traces.on_the_bus {
                let unused = "there is an NVIDIA GPU on the PCI bus, which this process cannot use";
                (format!("{unused}: {help}"), false)
            } else {
                let none = "there is no sign of an NVIDIA GPU, so this is no fault";
                (none.to_owned(), false)
            }
        }
        Trouble::NoDevice(_) if traces.hidden => {
            let hidden = "CUDA_VISIBLE_DEVICES hides them, if there are any";
            (hidden.to_owned(), false)
        }
        Trouble::NoDevice(_) if traces.device_node => {
            let nodes = "there are device nodes of GPUs (/dev/nvidia*)";
            (format!("{nodes}: {RESTART}"), true)
        }
        Trouble::NoDevice(_) => {
            let no_fault = "if the machine has no GPU, this is no fault";
            (format!("{no_fault}; {}", trouble.remedy()), false)
        }
        _ => (trouble.remedy(), true),
    };
    finding.meaning(meaning).blocking(blocking)
}

pub(crate) fn driver_finding(version: CudaVersion, kernel_module: Option<&str>) -> Finding {
    let module = kernel_module.map(|module| format!(", kernel module {module}"));
    let seen = format!("CUDA {version}{}", module.unwrap_or_default());
    if version.major < TOOLKIT_MAJOR {
        Finding::slower(Subject::Driver, seen).meaning(format!(
            "cubins of CUDA {TOOLKIT_MAJOR}, which releases carry, do not load: {}; or compile \
             ahead of time with a toolkit of CUDA {}",
            update_hint(TOOLKIT_MAJOR),
            version.major
        ))
    } else {
        Finding::works(Subject::Driver, seen)
    }
}

pub(crate) fn gpu_finding(gpu: &GpuFacts, new_enough: bool) -> Finding {
    let seen = format!(
        "{}, compute capability {}, {:.0} GiB, {} multiprocessors, {}, PCI {}",
        gpu.name,
        gpu.compute_capability,
        gpu.memory_bytes as f64 / f64::from(1 << 30),
        gpu.multiprocessors,
        gpu.uuid,
        gpu.pci_bus_id
    );
    let (verdict, meaning) = match (gpu.compute_mode, gpu.mig) {
        _ if !new_enough => (
            Verdict::Not,
            format!(
                "kernels are compiled for compute capability {}.{} and newer",
                Arch::OLDEST.major,
                Arch::OLDEST.minor
            ),
        ),
        (ComputeMode::Prohibited, _) => (
            Verdict::Not,
            format!(
                "its compute mode lets no process in: `nvidia-smi -i {} -c DEFAULT`",
                gpu.pci_bus_id
            ),
        ),
        (ComputeMode::ExclusiveProcess, _) => (
            Verdict::Slower,
            "its compute mode lets one process in: one rank a GPU works, ranks that are processes \
             cannot share it"
                .to_owned(),
        ),
        (_, true) => (
            Verdict::Slower,
            "a part of a GPU (MIG): a process sees one part, and parts cannot reach each other's \
             memory, so only ranks on this part can form a group"
                .to_owned(),
        ),
        _ => (Verdict::Works, String::new()),
    };
    Finding::new(Subject::Gpu, verdict, seen)
        .on([gpu.ordinal])
        .meaning(meaning)
}

pub(crate) fn shared_finding(right: &[([u32; 2], Vec<Exchanged>)], pairs: usize) -> Finding {
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
    let arrived = "as file descriptors; random bytes arrived, written and read, from either side";
    let seen = match right {
        [([first, second], _)] if first == second => {
            "as file descriptors; random bytes arrived both ways between two ranks".to_owned()
        }
        _ if pairs == 1 => format!("{arrived}: {rate}"),
        _ => format!("{arrived} in {} of {pairs} pairs: {rate}", right.len()),
    };
    Finding::works(Subject::SharedMemory, seen).on(right.iter().flat_map(|(pair, _)| *pair))
}

/// One finding for each kind of link that there is.
pub(crate) fn link_findings(links: &[LinkFacts]) -> Vec<Finding> {
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
            "a group cannot have ranks on both. `nvidia-smi topo -p2p rw` shows more; in a \
             virtual machine peer access may be off, and on some hosts the IOMMU or PCIe access \
             control forbids it",
            |link| !link.access,
        ),
    ];
    let one_way = |link: &&LinkFacts| link.from < link.to;
    let all = links.iter().filter(one_way).count();
    kinds
        .into_iter()
        .filter_map(|(verdict, kind, meaning, is)| {
            let pairs: Vec<String> = links
                .iter()
                .filter(one_way)
                .filter(|link| is(link))
                .map(|link| format!("{}-{}", link.from, link.to))
                .collect();
            let which = match pairs.len() {
                0 => return None,
                count if count > 1 && count == all => format!("all {all} pairs"),
                _ => pairs.join(", "),
            };
            let seen = format!("{kind}: {which}");
            Some(Finding::new(Subject::Links, verdict, seen).meaning(meaning))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_link_is_named_once_with_its_pairs() {
        let link = |from, to, access, native_atomics| LinkFacts {
            from,
            to,
            access,
            native_atomics,
            data_arrived: None,
            gigabytes_per_second: None,
        };
        let mixed = [
            link(0, 1, true, true),
            link(1, 0, true, true),
            link(0, 2, true, false),
            link(1, 2, false, false),
        ];
        let findings = link_findings(&mixed).into_iter();
        let seen: Vec<String> = findings.map(|finding| finding.seen).collect();
        let expected = [
            "NVLink (peer access with native atomics): 0-1",
            "PCIe (peer access without native atomics): 0-2",
            "no peer access, the driver says: 1-2",
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn traces_of_a_gpu_decide_whether_a_missing_driver_is_a_fault() {
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
        assert!(!none.blocking && none.meaning.contains("no fault"));
        // A container sees its host's bus, whether or not it was given the GPU.
        let bus = with(false, true);
        assert!(!bus.blocking && bus.meaning.contains("install it"));
        assert!(with(true, true).blocking);
    }
}
