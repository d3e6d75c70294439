//! The compiled kernels by name.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, AtomicU64};

use peersum_kernels::abi::PeersumParams;

/// One entry point. It runs as one emulated thread, within [`peersum_emulator_run`] only.
pub(crate) type EntryPoint = unsafe extern "C" fn(PeersumParams);

/// Lets other fibers run until the word is another than the value, or for a turn if the word is
/// null. Within [`peersum_emulator_run`] only.
pub(crate) type Suspend = unsafe extern "C" fn(*const c_void, *const AtomicU32, u32);

/// The size of `emulator::BlockMemory` in 64-bit words; the C++ side checks it.
pub(crate) const BLOCK_MEMORY_WORDS: usize = 1032;

/// `emulator::Thread` of `cpp/runtime.hpp`.
#[repr(C)]
pub(crate) struct ThreadIdentity {
    pub(crate) thread: u32,
    pub(crate) threads: u32,
    pub(crate) block: u32,
    pub(crate) blocks: u32,
    pub(crate) cluster: u32,
    /// [`BLOCK_MEMORY_WORDS`] words.
    pub(crate) memory: *const AtomicU64,
    /// Not 0, which the generator never leaves.
    pub(crate) random_seed: u32,
    /// Set by the kernel.
    pub(crate) has_waited: bool,
    pub(crate) suspend: Suspend,
    /// The first argument of `suspend`.
    pub(crate) fiber: *const c_void,
}

unsafe extern "C" {
    /// Runs `entry` as one emulated thread, on the caller's stack.
    pub(crate) fn peersum_emulator_run(
        entry: EntryPoint,
        params: *const PeersumParams,
        thread: *const ThreadIdentity,
    );
}

include!(concat!(env!("OUT_DIR"), "/entry_points.rs"));

/// The entry point of this name.
pub(crate) fn find(name: &str) -> Option<EntryPoint> {
    ENTRY_POINTS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|&(_, entry)| entry)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use peersum_artifact::ModuleKey;

    use super::*;

    #[test]
    fn every_entry_point_of_the_matrix_is_a_function_of_its_own() {
        let functions: HashSet<usize> = ModuleKey::all()
            .flat_map(|key| key.entry_points())
            .map(|name| find(&name).unwrap_or_else(|| panic!("{name} is missing")) as usize)
            .collect();
        assert_eq!(functions.len(), 185);
    }

    #[test]
    fn an_unknown_name_is_not_found() {
        assert!(find("peersum_push_one_shot_bf16_ws9").is_none());
    }
}
