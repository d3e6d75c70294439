//! The environment variables that this crate reads. Each can be given in code instead; none is read
//! after [`CommunicatorBuilder::build`](crate::CommunicatorBuilder::build).
//!
//! In a set-uid process none is read: its caller, who has fewer rights, has set them.

/// An environment variable that this crate reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What it sets.
    pub meaning: &'static str,
    /// What applies if it is not set.
    pub default: &'static str,
}

/// Defines each variable once: a documented constant for its name, and its place in [`VARIABLES`].
macro_rules! variables {
    ($($constant:ident, $name:literal, $meaning:literal, $default:literal;)+) => {
        $(
            #[doc = concat!("`", $name, "`: ", $meaning, ". Default: ", $default, ".")]
            pub const $constant: &str = $name;
        )+

        /// Every variable, as README's table has them.
        pub const VARIABLES: &[Variable] = &[
            $(Variable { name: $constant, meaning: $meaning, default: $default },)+
        ];
    };
}

variables! {
    RANK, "RANK",
    "the rank of this process; Open MPI's and Slurm's names are understood too",
    "none";

    WORLD_SIZE, "WORLD_SIZE",
    "the number of ranks; Open MPI's and Slurm's names are understood too",
    "none";

    LOCAL_RANK, "LOCAL_RANK",
    "the number of this rank on its machine, which is the number of its GPU; Open MPI's and \
     Slurm's names are understood too",
    "the rank";

    RENDEZVOUS_DIR, "PEERSUM_RENDEZVOUS_DIR",
    "the directory of the Unix socket where the ranks meet, mode 0700",
    "`$XDG_RUNTIME_DIR/peersum`, else a directory of the user's in `/tmp`";

    GROUP, "PEERSUM_GROUP",
    "the name of the group, which tells groups of one user apart; shell loops that run at once \
     need one each",
    "what torchrun, mpirun and srun set for each run";

    CUBIN_DIR, "PEERSUM_CUBIN_DIR",
    "a directory of cubins with their `manifest.json`, searched before the cubins in the program",
    "none";

    JIT, "PEERSUM_JIT",
    "`allow`, `deny` (a missing module is an error that lists every place searched) or `force` \
     (NVRTC only)",
    "`allow`";

    CACHE_DIR, "PEERSUM_CACHE_DIR",
    "where modules that NVRTC compiled are kept",
    "`peersum/jit` in the user's cache directory";

    CUDA_HOME, "CUDA_HOME",
    "a CUDA toolkit in which NVRTC is searched, by its absolute path; a relative one is ignored",
    "none";

    CUDA_PATH, "CUDA_PATH",
    "as `CUDA_HOME`, searched after it",
    "none";
}
