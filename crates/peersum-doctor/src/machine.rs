//! The system around the process: namespaces, limits, environment, traces of a GPU.

use std::fs;
use std::path::Path;

use crate::report::{Finding, Subject};

/// Descriptors that a rank of eight needs at once, with room for a program's own: two a peer at
/// set-up and one a symmetric buffer.
const FEW_DESCRIPTORS: u64 = 256;
/// The namespaces that the system starts with, whose numbers Linux fixes in `proc_ns.h`.
const FIRST_NAMESPACES: [&str; 2] = ["pid:[4026531836]", "ipc:[4026531839]"];
/// Hardware queues that keep the streams of up to 8 ranks apart.
const ENOUGH_CONNECTIONS: u32 = 32;

/// The PID and IPC namespaces, and what they mean for ranks in several containers.
pub(crate) fn namespaces() -> Finding {
    namespaces_finding(["pid", "ipc"].map(|name| {
        let namespace = fs::read_link(Path::new("/proc/self/ns").join(name));
        namespace.map_or_else(
            |error| format!("{name}: {error}"),
            |link| link.display().to_string(),
        )
    }))
}

fn namespaces_finding(own: [String; 2]) -> Finding {
    let seen = own.join(", ");
    if own == FIRST_NAMESPACES {
        return Finding::works(Subject::Namespaces, seen + ", the system's first");
    }
    Finding::works(Subject::Namespaces, seen).meaning(
        "ranks inside this container reach each other. Ranks in several containers need one user, \
         one rendezvous directory mounted into all, and the same GPUs; their PID and IPC \
         namespaces may differ, unless memory is shared through legacy CUDA IPC (then \
         `--pid=host --ipc=host`)",
    )
}

/// Open files. `None` is no limit.
pub(crate) fn limits(open_files: Option<u64>) -> Finding {
    let seen = match open_files {
        Some(limit) => format!("open files: {limit}"),
        None => "open files: no limit".to_owned(),
    };
    if open_files.is_some_and(|files| files < FEW_DESCRIPTORS) {
        Finding::slower(Subject::Limits, seen).meaning(format!(
            "memory travels as file descriptors, so larger groups may run out of them: raise the \
             limit with `ulimit -n {FEW_DESCRIPTORS}` or more"
        ))
    } else {
        Finding::works(Subject::Limits, seen)
    }
}

/// The variables that change what CUDA does. `gpus` is how many GPUs this process sees.
pub(crate) fn environment(gpus: usize, read: impl Fn(&str) -> Option<String>) -> Finding {
    let variable = |name: &str| match read(name) {
        Some(value) => format!("{name}={value}"),
        None => format!("{name} is not set"),
    };
    let seen = ["CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_MAX_CONNECTIONS"]
        .map(variable)
        .join("; ");
    let connections: Option<u32> =
        read("CUDA_DEVICE_MAX_CONNECTIONS").and_then(|value| value.trim().parse().ok());
    // With a GPU for each rank, CUDA's default is enough for two communicators a process.
    if gpus == 1 && connections.is_none_or(|connections| connections < ENOUGH_CONNECTIONS) {
        Finding::slower(Subject::Environment, seen).meaning(format!(
            "there is one GPU, so ranks of one process share it: their kernels wait for each \
             other, and with few hardware queues some may not start. Set \
             CUDA_DEVICE_MAX_CONNECTIONS={ENOUGH_CONNECTIONS} before creating the CUDA context. A \
             single rank does not need it"
        ))
    } else {
        Finding::works(Subject::Environment, seen)
    }
}

/// Signs of an NVIDIA GPU that the driver's library does not show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Traces {
    /// A GPU's device node: this process was given a GPU.
    pub(crate) device_node: bool,
    /// A display or compute controller of NVIDIA's on the PCI bus. A container sees its host's bus.
    pub(crate) on_the_bus: bool,
    /// `CUDA_VISIBLE_DEVICES` chooses which GPUs the driver shows.
    pub(crate) hidden: bool,
}

/// Looks for them below `root`, which is `/`.
pub(crate) fn traces(root: &Path, read: impl Fn(&str) -> Option<String>) -> Traces {
    const NVIDIA: &str = "0x10de";
    const DISPLAY_CONTROLLER: &str = "0x03";
    let entries = |path: &str| {
        fs::read_dir(root.join(path))
            .into_iter()
            .flatten()
            .flatten()
    };
    let is_a_gpu = |device: &Path| {
        let begins = |file: &str, with: &str| {
            fs::read_to_string(device.join(file)).is_ok_and(|text| text.starts_with(with))
        };
        begins("vendor", NVIDIA) && begins("class", DISPLAY_CONTROLLER)
    };
    Traces {
        device_node: entries("dev").any(|entry| {
            let name = entry.file_name();
            name.to_str()
                .and_then(|name| name.strip_prefix("nvidia"))
                .is_some_and(|rest| rest.parse::<u32>().is_ok())
        }),
        on_the_bus: entries("sys/bus/pci/devices").any(|entry| is_a_gpu(&entry.path())),
        hidden: read("CUDA_VISIBLE_DEVICES").is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Verdict;

    #[test]
    fn a_container_s_namespaces_come_with_what_ranks_in_several_need() {
        let finding =
            |pid: &str| namespaces_finding([pid.to_owned(), FIRST_NAMESPACES[1].to_owned()]);
        assert_eq!(finding(FIRST_NAMESPACES[0]).meaning, "");
        let own = finding("pid:[4026532500]");
        assert_eq!(own.verdict, Verdict::Works);
        assert!(own.seen.contains("pid:[4026532500]"), "{}", own.seen);
        assert!(own.meaning.contains("namespaces may differ"));
        assert!(own.meaning.contains("`--pid=host --ipc=host`"));
    }

    #[test]
    fn few_descriptors_are_worth_a_word_and_no_limit_is_not() {
        assert_eq!(limits(None).verdict, Verdict::Works);
        assert_eq!(limits(Some(1024)).verdict, Verdict::Works);
        let few = limits(Some(64));
        assert_eq!(few.verdict, Verdict::Slower);
        assert!(few.meaning.contains("ulimit -n"));
    }

    #[test]
    fn hardware_queues_matter_where_ranks_share_the_one_gpu() {
        let verdict = |gpus, connections: Option<&str>| {
            environment(gpus, |name| {
                (name == "CUDA_DEVICE_MAX_CONNECTIONS")
                    .then(|| connections.map(str::to_owned))
                    .flatten()
            })
            .verdict
        };
        assert_eq!(verdict(0, None), Verdict::Works);
        assert_eq!(verdict(1, None), Verdict::Slower);
        assert_eq!(verdict(1, Some("8")), Verdict::Slower);
        assert_eq!(verdict(1, Some("32")), Verdict::Works);
        assert_eq!(verdict(2, None), Verdict::Works);
    }

    #[test]
    fn a_gpu_without_a_driver_leaves_traces_on_the_bus_and_among_the_devices() {
        let root = tempfile::tempdir().unwrap();
        let none = traces(root.path(), |_| None);
        assert!(!none.device_node && !none.on_the_bus);
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        // A network adapter of the same vendor and the driver's control node are no GPU.
        write("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n");
        write("sys/bus/pci/devices/0000:01:00.0/class", "0x020000\n");
        write("dev/nvidiactl", "");
        assert_eq!(traces(root.path(), |_| None), none);
        write("sys/bus/pci/devices/0000:02:00.0/vendor", "0x10de\n");
        write("sys/bus/pci/devices/0000:02:00.0/class", "0x030200\n");
        assert!(traces(root.path(), |_| None).on_the_bus);
        write("dev/nvidia0", "");
        assert!(traces(root.path(), |_| None).device_node);
    }
}
