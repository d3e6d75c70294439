//! The steps that compile: JIT cache, then NVRTC.

use std::time::{Duration, Instant};

use peersum_artifact::{
    Arch, CacheKeyInputs, CompilerId, CompilerKind, Digest, ManifestModule, Target, cache_key,
    verify_bytes,
};

use super::jit_cache::{EntryLock, JitCache};
use super::nvrtc::{self, NvrtcError, NvrtcFile, NvrtcLibrary};
use super::place::Place;
use super::policy::JitMode;
use super::reason::Reason;
use super::report::Compilation;
use super::search::{Found, Search};

impl Search<'_> {
    /// Takes the module from the JIT cache or compiles it with the first NVRTC that can.
    pub(super) fn compiled_here(&mut self) -> Option<Found> {
        let policy = self.policy;
        if policy.jit == JitMode::Deny {
            self.miss(self.cache_place(), Reason::JitMode(JitMode::Deny));
            self.miss(Place::Nvrtc, Reason::JitMode(JitMode::Deny));
            return None;
        }
        let directory = policy.cache_dir.as_deref().ok_or(Reason::NotSet);
        let cache = directory
            .and_then(|directory| Ok(JitCache::open(directory)?))
            .map_err(|reason| self.miss(self.cache_place(), reason))
            .ok();
        let mut files = policy.nvrtc.files().peekable();
        if files.peek().is_none() {
            let looked_at = policy.nvrtc.looked_at();
            self.miss(Place::Nvrtc, NvrtcError::NotFound { looked_at });
        }
        for file in files {
            match self.with_library(&file, cache.as_ref()) {
                Ok(found) => return Some(found),
                Err(reason) => self.miss(Place::Nvrtc, reason),
            }
        }
        None
    }

    /// Looks into the cache under this library's key, then compiles with the library itself.
    fn with_library(
        &mut self,
        file: &NvrtcFile,
        cache: Option<&JitCache>,
    ) -> Result<Found, Reason> {
        if let Some(major) = file.major {
            self.refuse_newer_than_driver(file, major)?;
        }
        let build = nvrtc::build_id(&file.path).map_err(|source| NvrtcError::Read {
            library: file.path.clone(),
            source,
        })?;
        // Without one the cache could not tell this library's modules from another's.
        let cache = cache.filter(|_| {
            if build.is_none() {
                let library = file.path.clone();
                self.miss(self.cache_place(), Reason::NoBuildId { library });
            }
            build.is_some()
        });
        let compiler = CompilerId {
            kind: CompilerKind::Nvrtc,
            // Only what can be told without loading the library; the build id tells the rest.
            version: file
                .major
                .map_or_else(|| "unknown".to_owned(), |major| major.to_string()),
            build: build.unwrap_or_default(),
        };
        let key = self.jit_key(&compiler);
        let lock = match cache.map(|cache| self.look_up_or_lock(cache, key)) {
            Some(Ok(found)) => return Ok(found),
            Some(Err(lock)) => lock,
            None => None,
        };

        let start = Instant::now();
        let library = NvrtcLibrary::open(&file.path)?;
        let library_load = start.elapsed();
        self.refuse_newer_than_driver(file, library.version().major)?;
        let (entry, bytes, compile) = self.compile(&library, key)?;
        // A failure to store is noted and harms nothing.
        let stored = cache.zip(lock).and_then(|(cache, lock)| {
            cache
                .store(&lock, &compiler, &entry, &bytes)
                .map_err(|error| self.miss(self.cache_place(), error))
                .ok()
        });
        tracing::info!(
            module = %self.key,
            target = %entry.target,
            compile_ms = compile.as_secs_f64() * 1e3,
            "compiled a module with NVRTC"
        );
        let compilation = Compilation {
            library: library.path().to_owned(),
            version: library.version(),
            library_load,
            compile,
            stored,
        };
        Ok(Found {
            place: Place::Nvrtc,
            file: None,
            compilation: Some(compilation),
            entry,
            bytes,
        })
    }

    /// The driver loads nothing that a newer major version of CUDA made.
    fn refuse_newer_than_driver(&self, file: &NvrtcFile, major: u32) -> Result<(), NvrtcError> {
        match self.device.driver_version {
            Some(driver) if major > driver.major => Err(NvrtcError::NewerThanDriver {
                library: file.path.clone(),
                nvrtc_major: major,
                driver,
            }),
            _ => Ok(()),
        }
    }

    /// The cache key of this module for this device and compiler.
    fn jit_key(&self, compiler: &CompilerId) -> Digest {
        cache_key(&CacheKeyInputs {
            module: self.key,
            target: Target::Cubin(self.device.arch),
            closure: &self.closure,
            prelude: None,
            flags: &nvrtc::compile_flags(self.device.arch),
            defines: &self.key.defines(),
            compiler,
            entry_points: &self.key.entry_points(),
        })
    }

    /// The cache's entry, or the right to store one. `None` if it cannot be had: what is compiled
    /// now is then not stored.
    fn look_up_or_lock(
        &mut self,
        cache: &JitCache,
        key: Digest,
    ) -> Result<Found, Option<EntryLock>> {
        let reason = match self.look_up(cache, key) {
            Ok(found) => return Ok(found),
            Err(reason) => reason,
        };
        self.miss(self.cache_place(), reason);
        match cache.lock(key, self.policy.patience(self.at_once)) {
            // The process that held the lock before has probably stored the module.
            Ok(lock) => self.look_up(cache, key).map_err(|_| Some(lock)),
            Err(error) => {
                // The holder may have stored the module and live on, or a child of its with the
                // lock.
                self.look_up(cache, key).map_err(|_| {
                    self.miss(self.cache_place(), error);
                    None
                })
            }
        }
    }

    fn look_up(&self, cache: &JitCache, key: Digest) -> Result<Found, Reason> {
        let entry = cache.lookup(key, self.key, self.device.arch)?;
        let (entry, bytes) = entry.ok_or(Reason::CacheMiss)?;
        Ok(Found {
            place: self.cache_place(),
            file: Some(cache.entry(key).join(entry.file_name())),
            compilation: None,
            entry,
            bytes,
        })
    }

    /// Compiles for the device's architecture, or for the nearest lower one that the library knows
    /// and that serves it.
    fn compile(
        &self,
        library: &NvrtcLibrary,
        key: Digest,
    ) -> Result<(ManifestModule, Vec<u8>, Duration), Reason> {
        let device = Arch::new(self.device.arch.major, self.device.arch.minor);
        let supported = library.supported_archs()?;
        let arch = nearest(supported, device).unwrap_or(device);
        let compiled = nvrtc::compile(library, self.key, arch, &self.kernels.sources);
        let compiled = compiled?;
        let entry = ManifestModule {
            key: self.key,
            target: Target::Cubin(arch),
            ptx_version: None,
            bytes: compiled.cubin.len() as u64,
            sha256: Digest::of(&compiled.cubin),
            closure_digest: self.closure.digest,
            cache_key: key,
            entry_points: compiled.entry_points,
        };
        verify_bytes(&compiled.cubin, &entry).map_err(Reason::Compiled)?;
        Ok((entry, compiled.cubin, compiled.took))
    }

    fn cache_place(&self) -> Place {
        Place::JitCache(self.policy.cache_dir.clone())
    }
}

/// The highest of the architectures whose cubins run on `device`.
fn nearest(supported: Vec<Arch>, device: Arch) -> Option<Arch> {
    let serving = supported
        .into_iter()
        .filter(|arch| arch.cubin_serves(device));
    serving.max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_newer_than_nvrtc_gets_the_nearest_lower_architecture_of_its_major() {
        let supported = ["75", "80", "86", "90", "100", "120"].map(|arch| arch.parse().unwrap());
        let nearest = |major, minor| nearest(supported.to_vec(), Arch::new(major, minor));
        assert_eq!(nearest(9, 0), Some(Arch::new(9, 0)));
        assert_eq!(nearest(10, 3), Some(Arch::new(10, 0)));
        assert_eq!(nearest(8, 9), Some(Arch::new(8, 6)));
        assert_eq!(nearest(11, 0), None);
    }
}
