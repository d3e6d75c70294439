//! Directories and libraries that peersum uses: the rendezvous, the JIT cache, NVRTC, NCCL.

use std::path::Path;
use std::thread;
use std::time::Duration;

use peersum::Rendezvous;
use peersum::environment::CACHE_DIR;
use peersum::loader::nvrtc::{NvrtcLibrary, NvrtcSearch};
use peersum::loader::probe_cache;
use peersum::nccl_version::{self, NcclVersion};
use peersum::rendezvous::RendezvousError;

use crate::report::{Finding, Subject};

/// Lets two ranks meet in the directory where this user's ranks meet.
pub(crate) fn rendezvous(patience: Duration) -> Finding {
    match meet(patience) {
        Ok(directory) => {
            Finding::works(Subject::Rendezvous, format!("two ranks met in {directory}"))
        }
        Err(error) => Finding::not(Subject::Rendezvous, error)
            .meaning(
                "ranks that are processes cannot meet: name a directory of your own with \
                 PEERSUM_RENDEZVOUS_DIR, the same for all ranks",
            )
            .blocking(true),
    }
}

/// The directory where two ranks met.
fn meet(patience: Duration) -> Result<String, RendezvousError> {
    // Other doctors may be at work, also in other PID namespaces that share the directory.
    let group = format!("doctor-{:016x}", fastrand::u64(..));
    let rank = |rank| Rendezvous::in_default_directory(group.clone(), rank, 2);
    let (hub, spoke) = (rank(0)?, rank(1)?);
    let directory = hub
        .directory()
        .map_or_else(String::new, |path| path.display().to_string());
    // Leaving together, so that neither is lost to the other.
    let join = move |rendezvous: Rendezvous| {
        rendezvous
            .join(patience)
            .and_then(|mut group| group.barrier("doctor", patience))
    };
    let spoke = thread::spawn(move || join(spoke));
    join(hub)?;
    spoke.join().unwrap_or(Ok(()))?;
    Ok(directory)
}

/// Whether what NVRTC compiles can be kept.
pub(crate) fn jit_cache(directory: Option<&Path>) -> Finding {
    let seen = match directory.map(probe_cache) {
        Some(Ok(path)) => {
            let seen = format!("{} can be written", path.display());
            return Finding::works(Subject::JitCache, seen);
        }
        Some(Err(error)) => error.to_string(),
        None => {
            format!("there is no place for it: {CACHE_DIR}, XDG_CACHE_HOME and HOME are not set")
        }
    };
    Finding::slower(Subject::JitCache, seen)
        .meaning("if no cubin serves a GPU, every process compiles the kernels again")
}

/// Whether kernels can be compiled here.
pub(crate) fn nvrtc(search: &NvrtcSearch) -> Finding {
    let mut failures = Vec::new();
    for file in search.files() {
        let opened = NvrtcLibrary::open(&file.path)
            .and_then(|library| library.supported_archs().map(|archs| (library, archs)));
        match opened {
            Ok((library, archs)) => {
                let archs: Vec<String> = archs.iter().map(|arch| format!("sm_{arch}")).collect();
                return Finding::works(
                    Subject::Nvrtc,
                    format!(
                        "{}, CUDA {}, compiles for {}",
                        library.path().display(),
                        library.version(),
                        archs.join(" ")
                    ),
                );
            }
            Err(error) => failures.push(error.to_string()),
        }
    }
    let seen = if failures.is_empty() {
        format!("not found; looked at: {}", search.looked_at().join(", "))
    } else {
        failures.join("; ")
    };
    Finding::not(Subject::Nvrtc, seen).meaning(
        "needed only if no cubin serves a GPU. To have it: NVIDIA's package cuda-nvrtc, or \
         `pip install nvidia-cuda-nvrtc` and its directory in LD_LIBRARY_PATH",
    )
}

/// Whether calls above the custom range could go to NCCL.
pub(crate) fn nccl() -> Finding {
    let seen = match nccl_version::open(None).map(|library| NcclVersion::of(&library)) {
        Ok(Some(version)) => {
            let works = Finding::works(Subject::Nccl, format!("version {version}"));
            return works.meaning(if nccl_version::IS_USED {
                ""
            } else {
                "this program was built without peersum's feature `nccl`, so no call goes there"
            });
        }
        Ok(None) => "the library does not tell its version".to_owned(),
        Err(error) => error.to_string(),
    };
    Finding::not(Subject::Nccl, seen).meaning(
        "not needed: calls of every size run without it. To send large ones there: NVIDIA's \
         package libnccl2, or `pip install nvidia-nccl-cu13` and its directory in LD_LIBRARY_PATH",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Verdict;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_cache_that_others_may_enter_is_named_with_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let cache = directory.path().join("jit");
        let missing = jit_cache(Some(&cache));
        assert_eq!(missing.verdict, Verdict::Works, "{}", missing.seen);
        fs::set_permissions(&cache, fs::Permissions::from_mode(0o755)).unwrap();
        let open = jit_cache(Some(&cache));
        assert_eq!(open.verdict, Verdict::Slower);
        assert!(open.seen.contains("0755") && open.seen.contains("chmod 700"));
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 0, "files are left");
        assert_eq!(jit_cache(None).verdict, Verdict::Slower);
    }

    #[test]
    fn an_nvrtc_that_is_absent_or_no_library_is_named_with_the_reason_and_blocks_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "not a library").unwrap();
        for (library, says) in [
            (Path::new("/nowhere/libnvrtc.so.13"), "not found"),
            (file.path(), "cannot be opened as a library"),
        ] {
            let search = NvrtcSearch {
                library: Some(library.to_owned()),
                ..NvrtcSearch::default()
            };
            let finding = nvrtc(&search);
            assert_eq!((finding.verdict, finding.blocking), (Verdict::Not, false));
            let seen = finding.seen;
            assert!(
                seen.contains(says) && seen.contains(library.to_str().unwrap()),
                "{seen}"
            );
        }
    }
}
