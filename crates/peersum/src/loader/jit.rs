//! The steps that compile: JIT cache, then NVRTC.

use std::time::Duration;

use peersum_artifact::{
    Arch, CacheKeyInputs, Closure, CompilerId, CompilerKind, CudaVersion, Digest, ManifestModule,
    Target, cache_key, verify_bytes,
};

use super::Search;
use super::jit_cache::{CachedModule, EntryLock, JitCache};
use super::nvrtc::{self, NvrtcError, NvrtcFile, NvrtcLibrary};
use super::policy::JitMode;
use super::report::{Origin, Place, Reason};
use super::search::Found;

impl Search<'_> {
    /// Takes the module from the JIT cache or compiles it with the first NVRTC that can.
    pub(super) fn compiled_here(&mut self, closure: &Closure) -> Option<(Origin, Found)> {
        let policy = self.policy;
        if policy.jit == JitMode::Deny {
            self.pass_over(
                Place::JitCache(policy.cache_dir.clone()),
                Reason::JitMode(JitMode::Deny),
            );
            self.pass_over(Place::Nvrtc, Reason::JitMode(JitMode::Deny));
            return None;
        }
        let cache = match policy.cache_dir.as_deref().map(JitCache::open) {
            Some(Ok(cache)) => Some(cache),
            Some(Err(error)) => {
                self.pass_over(
                    Place::JitCache(policy.cache_dir.clone()),
                    Reason::Cache(error),
                );
                None
            }
            None => {
                self.pass_over(Place::JitCache(None), Reason::NotSet);
                None
            }
        };
        let found = policy.nvrtc.run();
        if found.files.is_empty() {
            self.pass_over(
                Place::Nvrtc,
                Reason::Nvrtc(NvrtcError::NotFound {
                    looked_at: found.looked_at,
                }),
            );
            return None;
        }
        found
            .files
            .iter()
            .find_map(|file| self.with_library(file, cache.as_ref(), closure))
    }

    /// The cache under this library's key, then the library itself.
    fn with_library(
        &mut self,
        file: &NvrtcFile,
        cache: Option<&JitCache>,
        closure: &Closure,
    ) -> Option<(Origin, Found)> {
        let newer_than_driver = |major| match self.device.driver_version {
            Some(driver) if major > driver.major => {
                Some(Reason::Nvrtc(NvrtcError::NewerThanDriver {
                    library: file.path.clone(),
                    nvrtc_major: major,
                    driver,
                }))
            }
            _ => None,
        };
        if let Some(reason) = file.major.and_then(newer_than_driver) {
            self.pass_over(Place::Nvrtc, reason);
            return None;
        }
        let build = match nvrtc::build_id(&file.path) {
            Ok(build) => build,
            Err(source) => {
                let error = NvrtcError::Read {
                    library: file.path.clone(),
                    source,
                };
                self.pass_over(Place::Nvrtc, Reason::Nvrtc(error));
                return None;
            }
        };
        let compiler = CompilerId {
            kind: CompilerKind::Nvrtc,
            // Only what can be told without loading the library; the build id tells the rest.
            version: file
                .major
                .map_or_else(|| "unknown".to_owned(), |major| major.to_string()),
            build: build.clone().unwrap_or_default(),
        };
        let key = self.jit_key(&compiler, closure);
        let cache = match (cache, build) {
            (Some(_), None) => {
                let reason = Reason::NoBuildId {
                    library: file.path.clone(),
                };
                self.pass_over(Place::JitCache(self.policy.cache_dir.clone()), reason);
                None
            }
            (cache, _) => cache,
        };
        let mut lock = None;
        if let Some(cache) = cache {
            if let Some(hit) = self.look_up(cache, key, true) {
                return Some(hit);
            }
            match cache.lock(key, self.policy.lock_patience) {
                Ok(held) => {
                    // Whoever held the lock before has probably stored what is wanted.
                    if let Some(hit) = self.look_up(cache, key, false) {
                        return Some(hit);
                    }
                    lock = Some(held);
                }
                Err(error) => {
                    self.pass_over(
                        Place::JitCache(self.policy.cache_dir.clone()),
                        Reason::Cache(error),
                    );
                }
            }
        }

        let was_open = NvrtcLibrary::is_open(&file.path);
        let library = match NvrtcLibrary::open(&file.path) {
            Ok(library) => library,
            Err(error) => {
                self.pass_over(Place::Nvrtc, Reason::Nvrtc(error));
                return None;
            }
        };
        let (major, minor) = library.version();
        if let Some(reason) = newer_than_driver(major) {
            self.pass_over(Place::Nvrtc, reason);
            return None;
        }
        let (found, compile) = match self.compile(&library, key, closure) {
            Ok(compiled) => compiled,
            Err(reason) => {
                self.pass_over(Place::Nvrtc, reason);
                return None;
            }
        };
        let stored = cache
            .zip(lock)
            .and_then(|(cache, lock)| self.store(cache, &lock, &compiler, &found));
        let origin = Origin::Nvrtc {
            library: library.path().to_owned(),
            version: CudaVersion { major, minor },
            library_load: if was_open {
                Duration::ZERO
            } else {
                library.load_time()
            },
            compile,
            stored,
        };
        tracing::info!(
            module = %self.key,
            target = %found.entry.target,
            compile_ms = compile.as_secs_f64() * 1e3,
            "compiled a module with NVRTC"
        );
        Some((origin, found))
    }

    /// The cache key of this module for this device and compiler.
    fn jit_key(&self, compiler: &CompilerId, closure: &Closure) -> Digest {
        cache_key(&CacheKeyInputs {
            module: self.key,
            target: Target::Cubin(self.device.arch),
            closure,
            prelude: None,
            flags: &nvrtc::compile_flags(self.device.arch),
            defines: &self.key.defines(),
            compiler,
            entry_points: &self.key.entry_points(),
        })
    }

    /// Looks into the cache. `first` says whether finding nothing is worth a note.
    fn look_up(&mut self, cache: &JitCache, key: Digest, first: bool) -> Option<(Origin, Found)> {
        let reason = match cache.lookup(key, self.key, self.device.arch) {
            Ok(Some(CachedModule { bytes, entry, file })) => {
                return Some((Origin::JitCache(file), Found { entry, bytes }));
            }
            Ok(None) => Reason::CacheMiss,
            Err(error) => Reason::Cache(error),
        };
        if first {
            self.pass_over(Place::JitCache(self.policy.cache_dir.clone()), reason);
        }
        None
    }

    /// Compiles for the device's architecture, or for the nearest lower one that the library knows and that serves it.
    fn compile(
        &self,
        library: &NvrtcLibrary,
        key: Digest,
        closure: &Closure,
    ) -> Result<(Found, Duration), Reason> {
        let sources = &self.kernels.sources;
        let mut arch = Arch::plain(self.device.arch.major, self.device.arch.minor);
        let compiled = match nvrtc::compile(library, self.key, arch, sources) {
            Err(NvrtcError::ArchUnsupported {
                supported,
                library: path,
                version,
                arch: asked,
            }) => match nearest(&supported, asked) {
                Some(lower) => {
                    arch = lower;
                    nvrtc::compile(library, self.key, arch, sources)
                }
                None => Err(NvrtcError::ArchUnsupported {
                    supported,
                    library: path,
                    version,
                    arch: asked,
                }),
            },
            other => other,
        }
        .map_err(Reason::Nvrtc)?;
        let entry = ManifestModule {
            key: self.key,
            target: Target::Cubin(arch),
            ptx_version: None,
            bytes: compiled.cubin.len() as u64,
            sha256: Digest::of(&compiled.cubin),
            closure_digest: closure.digest,
            cache_key: key,
            entry_points: compiled.entry_points,
        };
        verify_bytes(&compiled.cubin, &entry).map_err(Reason::Compiled)?;
        Ok((
            Found {
                entry,
                bytes: compiled.cubin,
            },
            compiled.took,
        ))
    }

    /// Stores what was compiled; a failure is noted and harms nothing.
    fn store(
        &mut self,
        cache: &JitCache,
        lock: &EntryLock,
        compiler: &CompilerId,
        found: &Found,
    ) -> Option<std::path::PathBuf> {
        match cache.store(lock, compiler, &found.entry, &found.bytes) {
            Ok(entry) => Some(entry),
            Err(error) => {
                self.pass_over(
                    Place::JitCache(self.policy.cache_dir.clone()),
                    Reason::Cache(error),
                );
                None
            }
        }
    }
}

/// The highest of the numbers `supported` whose plain cubins run on `device`.
fn nearest(supported: &[u32], device: Arch) -> Option<Arch> {
    supported
        .iter()
        .filter_map(|&number| {
            Some(Arch::plain(
                u8::try_from(number / 10).ok()?,
                u8::try_from(number % 10).ok()?,
            ))
        })
        .filter(|arch| arch.cubin_serves(device))
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_newer_than_nvrtc_gets_the_nearest_lower_architecture_of_its_major() {
        let supported = [75, 80, 86, 90, 100, 120];
        assert_eq!(
            nearest(&supported, Arch::plain(10, 3)),
            Some(Arch::plain(10, 0))
        );
        assert_eq!(
            nearest(&supported, Arch::plain(8, 9)),
            Some(Arch::plain(8, 6))
        );
        assert_eq!(nearest(&supported, Arch::plain(11, 0)), None);
    }
}
