//! What the loader may use, and where it looks.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use peersum_kernels::HarnessBuild;

use super::nvrtc::NvrtcSearch;
use crate::environment;
use crate::privilege::gained_rights;

/// Whether modules may be compiled at run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum JitMode {
    /// A module that no directory and no pack has is taken from the JIT cache, compiled with NVRTC,
    /// or loaded as PTX.
    #[default]
    Allow,
    /// Only what was compiled ahead of time is used: no JIT cache, no NVRTC, no PTX (which the
    /// driver would compile). A miss is an error, on a developer's warm machine as on a fresh one.
    Deny,
    /// Directories, pack and PTX are passed over: the module comes from NVRTC or the JIT cache. For
    /// testing the JIT path where compiled modules are installed.
    Force,
}

impl fmt::Display for JitMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            JitMode::Allow => "allow",
            JitMode::Deny => "deny",
            JitMode::Force => "force",
        })
    }
}

/// A value of [`environment::JIT`] that has no meaning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("PEERSUM_JIT is {given:?}; it must be allow, deny or force")]
pub struct ParseJitModeError {
    given: String,
}

impl FromStr for JitMode {
    type Err = ParseJitModeError;

    fn from_str(given: &str) -> Result<Self, Self::Err> {
        [JitMode::Allow, JitMode::Deny, JitMode::Force]
            .into_iter()
            .find(|mode| mode.to_string() == given)
            .ok_or_else(|| ParseJitModeError {
                given: given.to_owned(),
            })
    }
}

/// What the environment said, as far as it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Environment {
    /// [`LoadPolicy::default`]: never read.
    #[default]
    NotRead,
    /// Set-uid or set-gid: the caller's environment is not the program's to follow.
    Ignored,
    /// Read, with the value of [`environment::CUBIN_DIR`].
    Read { cubin_dir: Option<PathBuf> },
}

/// What the loader may use, and where it looks.
///
/// [`LoadPolicy::default`] reads no environment variable and has no JIT cache;
/// [`LoadPolicy::from_env`] is what most programs want. The methods override either.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoadPolicy {
    pub(super) cubin_dir: Option<PathBuf>,
    pub(super) environment: Environment,
    pub(super) cache_dir: Option<PathBuf>,
    pub(super) jit: JitMode,
    pub(super) nvrtc: NvrtcSearch,
    /// See [`LoadPolicy::patience`].
    pub(super) lock_patience: Option<Duration>,
    pub(super) harness_build: Option<HarnessBuild>,
}

/// How long to wait for another process's compilation, for each module that is compiled at once: a
/// compilation takes from a tenth of a second to several seconds, where few cores have many to do.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);

impl LoadPolicy {
    /// Reads the environment, once: `PEERSUM_CUBIN_DIR`, `PEERSUM_CACHE_DIR`, `PEERSUM_JIT`
    /// (`allow`, `deny`, `force`); for the cache's default place `XDG_CACHE_HOME` or `HOME` (the
    /// cache is then `peersum/jit` in the user's cache directory); to find NVRTC `LD_LIBRARY_PATH`,
    /// `CUDA_HOME` and `CUDA_PATH`, of which only absolute paths are looked at. An empty variable
    /// counts as unset.
    ///
    /// In a process that gained rights when it was executed (set-uid, set-gid, file capabilities)
    /// the environment belongs to another user: there this is [`LoadPolicy::default`].
    ///
    /// # Errors
    ///
    /// [`ParseJitModeError`] if `PEERSUM_JIT` has a value without a meaning: a misspelt `deny` must
    /// not allow.
    pub fn from_env() -> Result<Self, ParseJitModeError> {
        Self::from_process(gained_rights(), |name| env::var_os(name))
    }

    fn from_process(
        gained_rights: bool,
        read: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, ParseJitModeError> {
        if gained_rights {
            return Ok(Self {
                environment: Environment::Ignored,
                ..Self::default()
            });
        }
        let value = |name: &str| read(name).filter(|value| !value.is_empty());
        let path = |name: &str| value(name).map(PathBuf::from);
        // As the XDG specification says, a relative cache home is as good as none.
        let absolute = |name: &str| path(name).filter(|path| path.is_absolute());
        let user_cache =
            || absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
        let jit = match value(environment::JIT) {
            Some(value) => value.to_string_lossy().parse()?,
            None => JitMode::default(),
        };
        Ok(Self {
            environment: Environment::Read {
                cubin_dir: path(environment::CUBIN_DIR),
            },
            cache_dir: path(environment::CACHE_DIR)
                .or_else(|| Some(user_cache()?.join("peersum/jit"))),
            jit,
            nvrtc: NvrtcSearch {
                library: None,
                library_dirs: value("LD_LIBRARY_PATH")
                    .map(|value| env::split_paths(&value).collect())
                    .unwrap_or_default(),
                toolkit_dirs: [environment::CUDA_HOME, environment::CUDA_PATH]
                    .into_iter()
                    .filter_map(path)
                    .collect(),
            },
            ..Self::default()
        })
    }

    /// A directory of cubins with their manifest, as `cargo xtask precompile` writes it. It is
    /// looked at before every other place.
    #[must_use]
    pub fn cubin_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.cubin_dir = Some(directory.into());
        self
    }

    /// The directory of the JIT cache. It is created with mode 0700 if it is missing; one that
    /// belongs to another user or lets others in is not used.
    #[must_use]
    pub fn cache_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.cache_dir = Some(directory.into());
        self
    }

    /// Uses no JIT cache: what NVRTC compiles is compiled again by the next process.
    #[must_use]
    pub fn without_cache(mut self) -> Self {
        self.cache_dir = None;
        self
    }

    /// Whether modules may be compiled at run time.
    #[must_use]
    pub fn jit(mut self, mode: JitMode) -> Self {
        self.jit = mode;
        self
    }

    /// The NVRTC library to use. No other is then looked for.
    #[must_use]
    pub fn nvrtc_library(mut self, path: impl Into<PathBuf>) -> Self {
        self.nvrtc.library = Some(path.into());
        self
    }

    /// How long to wait for another process that compiles the same module. By default 60 seconds
    /// for each of the modules that are compiled at once. After that the module is compiled here as
    /// well, and not stored.
    #[must_use]
    pub fn lock_patience(mut self, patience: Duration) -> Self {
        self.lock_patience = Some(patience);
        self
    }

    /// How long to wait for another process that compiles the same module as one of `at_once`.
    pub(super) fn patience(&self, at_once: u32) -> Duration {
        self.lock_patience
            .unwrap_or(LOCK_PATIENCE.saturating_mul(at_once.max(1)))
    }

    /// Loads another build of the kernels than the shipped one, for the harness's measurements. No
    /// environment variable does.
    #[doc(hidden)]
    #[must_use]
    pub fn harness_build(mut self, build: HarnessBuild) -> Self {
        self.harness_build = Some(build);
        self
    }

    /// Whether modules may be compiled at run time.
    pub fn jit_mode(&self) -> JitMode {
        self.jit
    }

    /// The directory of the JIT cache, if there is one.
    pub fn cache_directory(&self) -> Option<&std::path::Path> {
        self.cache_dir.as_deref()
    }

    /// Where NVRTC is looked for.
    pub fn nvrtc_search(&self) -> &NvrtcSearch {
        &self.nvrtc
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn from(variables: &[(&str, &str)]) -> Result<LoadPolicy, ParseJitModeError> {
        let variables: HashMap<&str, &str> = variables.iter().copied().collect();
        LoadPolicy::from_process(false, |name| variables.get(name).map(OsString::from))
    }

    #[test]
    fn the_cache_is_the_named_directory_or_lies_in_the_users_cache_directory() {
        for (variables, expected) in [
            (&[][..], None),
            (&[("HOME", "/home/a")], Some("/home/a/.cache/peersum/jit")),
            (
                &[("HOME", "/home/a"), ("XDG_CACHE_HOME", "/fast")],
                Some("/fast/peersum/jit"),
            ),
            (
                &[("HOME", "/home/a"), ("XDG_CACHE_HOME", "rel")],
                Some("/home/a/.cache/peersum/jit"),
            ),
            (
                &[("HOME", "/home/a"), (environment::CACHE_DIR, "/mine")],
                Some("/mine"),
            ),
        ] {
            let cache = from(variables).unwrap().cache_dir;
            assert_eq!(cache, expected.map(PathBuf::from), "{variables:?}");
        }
    }

    #[test]
    fn a_set_uid_process_does_not_even_read_the_environment() {
        let policy = LoadPolicy::from_process(true, |name| panic!("{name} was read")).unwrap();
        let default = LoadPolicy {
            environment: Environment::Ignored,
            ..LoadPolicy::default()
        };
        assert_eq!(policy, default);
    }

    #[test]
    fn the_more_modules_are_compiled_at_once_the_longer_one_is_waited_for() {
        let policy = LoadPolicy::default();
        assert_eq!(policy.patience(1), LOCK_PATIENCE);
        assert_eq!(policy.patience(10), 10 * LOCK_PATIENCE);
        let given = Duration::from_millis(50);
        assert_eq!(policy.lock_patience(given).patience(10), given);
    }

    #[test]
    fn a_misspelt_jit_mode_is_an_error_and_an_empty_one_is_none() {
        assert_eq!(
            from(&[(environment::JIT, "deny")]).unwrap().jit,
            JitMode::Deny
        );
        assert_eq!(from(&[(environment::JIT, "")]).unwrap().jit, JitMode::Allow);
        let error = from(&[(environment::JIT, "denied")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "PEERSUM_JIT is \"denied\"; it must be allow, deny or force"
        );
    }
}
