//! The pack: a directory of compiled modules as one byte string, which `peersum-kernels` embeds.
//!
//! | bytes | field |
//! | --- | --- |
//! | 8 | the magic [`MAGIC`] |
//! | 4 | the version of this format, little-endian as all numbers here: [`PACK_VERSION`] |
//! | 1 | how each module's file is compressed: 1 is DEFLATE, the only way so far |
//! | 3 | zero |
//! | 8 | the manifest's length |
//! | 8 | the payload's length |
//!
//! The payload is the manifest; then, in the manifest's order, the compressed length of each
//! module's file in 4 bytes; then the compressed files, one after the other. The manifest is not
//! compressed, because it is read at each start of a program; of the files a program inflates only
//! those that it loads. No bytes at all are no pack.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use thiserror::Error;

use crate::manifest::{
    MAX_MANIFEST_BYTES, Manifest, ManifestError, ManifestModule, SchemaError, VerifyError,
    verify_bytes, verify_file,
};

/// The first bytes of a pack. The last one is not text, so that a pack is not mistaken for text.
pub const MAGIC: [u8; 8] = *b"peersum\xff";

/// The version of the format that this crate writes, and the only one that it reads.
pub const PACK_VERSION: u32 = 1;

const HEADER_BYTES: usize = 32;

/// The compression's number.
const DEFLATE: u8 = 1;

/// The highest level of the compressor that is worth its time.
const DEFLATE_LEVEL: u8 = 9;

/// Why bytes are not a usable pack, or why none can be made.
#[derive(Debug, Error)]
pub enum PackError {
    /// Not a pack at all.
    #[error("not a pack of cubins: it does not begin with the pack's magic")]
    NotAPack,
    /// A format that this crate does not know.
    #[error(
        "the pack has format version {found}, and this version of peersum reads {PACK_VERSION}: \
         build both from one release"
    )]
    Version {
        /// The pack's version.
        found: u32,
    },
    /// A compression that this crate does not know.
    #[error("the pack is compressed by method {method}, which this version of peersum cannot read")]
    Compression {
        /// The method's number.
        method: u8,
    },
    /// Its parts do not add up to its length.
    #[error("the pack is damaged: {part} takes {expected} bytes where {found} are there")]
    Length {
        /// The part.
        part: &'static str,
        /// What the header or the manifest says.
        expected: u64,
        /// What there is.
        found: u64,
    },
    /// Its manifest is not one.
    #[error("the pack's manifest cannot be used: {0}")]
    Manifest(#[from] SchemaError),
    /// The directory to pack has no manifest.
    #[error(transparent)]
    Directory(#[from] ManifestError),
    /// A file to pack is not what its manifest entry says.
    #[error(transparent)]
    File(#[from] VerifyError),
}

/// A parsed pack. The files are neither inflated nor verified yet; see [`Pack::verified`].
#[derive(Debug)]
pub struct Pack<'a> {
    manifest: Arc<Manifest>,
    deflated: Vec<&'a [u8]>,
}

impl<'a> Pack<'a> {
    /// Parses a pack. Returns `None` if there are no bytes.
    ///
    /// # Errors
    ///
    /// The bytes are not a whole pack of this version. No input panics or allocates more than its
    /// own size suggests.
    pub fn parse(bytes: &'a [u8]) -> Result<Option<Pack<'a>>, PackError> {
        Pack::parse_with(bytes, |text| Manifest::parse(text).map(Arc::new))
    }

    /// As [`Pack::parse`], with the manifest's text given to `parse`, which may know it already.
    ///
    /// # Errors
    ///
    /// As [`Pack::parse`].
    pub fn parse_with(
        bytes: &'a [u8],
        parse: impl FnOnce(&str) -> Result<Arc<Manifest>, SchemaError>,
    ) -> Result<Option<Pack<'a>>, PackError> {
        if bytes.is_empty() {
            return Ok(None);
        }
        if !bytes.starts_with(&MAGIC) {
            return Err(PackError::NotAPack);
        }
        let Some((header, payload)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(length("the header", HEADER_BYTES as u64, bytes.len()));
        };
        let version = u32::from_le_bytes(field(header, 8));
        if version != PACK_VERSION {
            return Err(PackError::Version { found: version });
        }
        let [method] = field(header, 12);
        if method != DEFLATE {
            return Err(PackError::Compression { method });
        }
        let manifest_bytes = u64::from_le_bytes(field(header, 16));
        let payload_bytes = u64::from_le_bytes(field(header, 24));
        if payload_bytes != payload.len() as u64 {
            return Err(length("the payload", payload_bytes, payload.len()));
        }
        if manifest_bytes > MAX_MANIFEST_BYTES {
            return Err(length("the manifest", manifest_bytes, payload.len()));
        }
        let (manifest, rest) = split(payload, manifest_bytes, "the manifest")?;
        let manifest = parse(std::str::from_utf8(manifest).map_err(|_| SchemaError::NotText)?)?;
        let index_bytes = manifest.modules.len() as u64 * size_of::<u32>() as u64;
        let (index, mut rest) = split(rest, index_bytes, "the index")?;
        let mut deflated = Vec::with_capacity(manifest.modules.len());
        for &bytes in index.as_chunks().0 {
            let (file, tail) = split(rest, u32::from_le_bytes(bytes).into(), "a module")?;
            deflated.push(file);
            rest = tail;
        }
        if !rest.is_empty() {
            return Err(length("what follows the last module", 0, rest.len()));
        }
        Ok(Some(Pack { manifest, deflated }))
    }

    /// The pack's manifest.
    #[must_use]
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// The bytes of a module of this pack, inflated and verified.
    ///
    /// # Errors
    ///
    /// The bytes are not what the entry says; a module that the pack does not list has none.
    pub fn verified(&self, module: &ManifestModule) -> Result<Vec<u8>, VerifyError> {
        let index = self
            .manifest
            .modules
            .iter()
            .position(|listed| listed.sort_key() == module.sort_key());
        let deflated = index.map_or(&[][..], |index| self.deflated[index]);
        // Never more than the entry says, which the manifest's reader has bounded.
        let most = usize::try_from(module.bytes).unwrap_or(usize::MAX);
        let bytes = match miniz_oxide::inflate::decompress_to_vec_with_limit(deflated, most) {
            Ok(bytes) => bytes,
            // The output is incomplete, or another file: verification says which.
            Err(error) => error.output,
        };
        verify_bytes(&bytes, module)?;
        Ok(bytes)
    }
}

/// Packs a directory of compiled modules, every file verified.
///
/// The same directory gives the same bytes.
///
/// # Errors
///
/// The directory has no usable manifest, or a file is not what its entry says.
pub fn pack_directory(directory: &Path) -> Result<Vec<u8>, PackError> {
    let mut manifest = Manifest::read_dir(directory)?;
    // The order in which the manifest is written, which the files follow.
    manifest.modules.sort_by_key(ManifestModule::sort_key);
    let (mut index, mut files) = (Vec::new(), Vec::new());
    for deflated in deflate_all(directory, &manifest.modules)? {
        // A module is at most `MAX_MODULE_BYTES` long, and DEFLATE adds at most a few bytes a block
        // to what it cannot compress.
        index.extend((deflated.len() as u32).to_le_bytes());
        files.extend(deflated);
    }
    Ok(assemble(&manifest.to_json_string(), &index, &files))
}

/// The modules' files, verified and compressed: on all cores, because compression is slow.
fn deflate_all(directory: &Path, modules: &[ManifestModule]) -> Result<Vec<Vec<u8>>, PackError> {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let deflate_each = |part: &[ManifestModule]| -> Result<Vec<Vec<u8>>, PackError> {
        let files = part.iter();
        files
            .map(|module| Ok(deflate(&verify_file(directory, module)?)))
            .collect()
    };
    let parts: Result<Vec<_>, PackError> = std::thread::scope(|scope| {
        let parts = modules.chunks(modules.len().div_ceil(cores).max(1));
        let start = |part| {
            let thread = std::thread::Builder::new();
            (part, thread.spawn_scoped(scope, move || deflate_each(part)))
        };
        let workers: Vec<_> = parts.map(start).collect();
        let ends = workers.into_iter().map(|(part, worker)| match worker {
            Ok(worker) => worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            // The system starts no more threads.
            Err(_) => deflate_each(part),
        });
        ends.collect()
    });
    Ok(parts?.concat())
}

#[cfg(feature = "small-pack")]
fn deflate(file: &[u8]) -> Vec<u8> {
    let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::best());
    let mut deflated = vec![0; compressor.deflate_compress_bound(file.len())];
    match compressor.deflate_compress(file, &mut deflated) {
        Ok(bytes) => {
            deflated.truncate(bytes);
            deflated
        }
        // There is room for whatever it makes.
        Err(_) => miniz_oxide::deflate::compress_to_vec(file, DEFLATE_LEVEL),
    }
}

#[cfg(not(feature = "small-pack"))]
fn deflate(file: &[u8]) -> Vec<u8> {
    miniz_oxide::deflate::compress_to_vec(file, DEFLATE_LEVEL)
}

fn assemble(manifest: &str, index: &[u8], files: &[u8]) -> Vec<u8> {
    let manifest = manifest.as_bytes();
    let payload_bytes = manifest.len() + index.len() + files.len();
    [
        &MAGIC[..],
        &PACK_VERSION.to_le_bytes(),
        &[DEFLATE, 0, 0, 0],
        &(manifest.len() as u64).to_le_bytes(),
        &(payload_bytes as u64).to_le_bytes(),
        manifest,
        index,
        files,
    ]
    .concat()
}

/// The bytes of the header from `at` on.
fn field<const N: usize>(header: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    std::array::from_fn(|index| header[at + index])
}

fn length(part: &'static str, expected: u64, found: usize) -> PackError {
    PackError::Length {
        part,
        expected,
        found: found as u64,
    }
}

fn split<'a>(
    bytes: &'a [u8],
    at: u64,
    part: &'static str,
) -> Result<(&'a [u8], &'a [u8]), PackError> {
    usize::try_from(at)
        .ok()
        .and_then(|at| bytes.split_at_checked(at))
        .ok_or_else(|| length(part, at, bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{EntryPoint, MAX_MODULE_BYTES};
    use crate::{Arch, Digest, ModuleKey, PtxVersion, Target};

    /// A manifest of no modules.
    const EMPTY: &str = r#"{"schema": 2, "peersum_version": "0.1.0",
        "toolkit": {"compiler": "nvcc", "version": "13.0.88", "build": "b"},
        "flags": [], "sources": [], "modules": []}"#;

    fn empty_pack() -> Vec<u8> {
        assemble(EMPTY, &[], &[])
    }

    fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut pack = empty_pack();
        pack[at..at + bytes.len()].copy_from_slice(bytes);
        pack
    }

    #[test]
    fn no_bytes_are_no_pack_and_a_pack_of_nothing_is_one() {
        assert!(Pack::parse(&[]).unwrap().is_none());
        let empty = empty_pack();
        let pack = Pack::parse(&empty).unwrap().unwrap();
        assert!(pack.manifest().modules.is_empty());
    }

    #[test]
    fn what_this_version_cannot_read_is_refused_by_name() {
        let parse = |pack: Vec<u8>| Pack::parse(&pack).unwrap_err();
        assert!(matches!(parse(with(0, b"PEER")), PackError::NotAPack));
        let (version, method) = (parse(with(8, &[2])), parse(with(12, &[2])));
        assert!(matches!(version, PackError::Version { found: 2 }));
        assert!(matches!(method, PackError::Compression { method: 2 }));
    }

    #[test]
    fn huge_and_contradictory_lengths_are_refused() {
        let too_long = 1 + empty_pack().len() as u64;
        for length in [u64::MAX, u64::MAX / 2, 1 << 40, too_long, 0] {
            for at in [16, 24] {
                let pack = with(at, &length.to_le_bytes());
                let error = Pack::parse(&pack).unwrap_err();
                assert!(
                    matches!(error, PackError::Length { .. } | PackError::Manifest(_)),
                    "{length} at {at}: {error}"
                );
            }
        }
        let mut longer = empty_pack();
        longer.push(0);
        assert!(matches!(
            Pack::parse(&longer),
            Err(PackError::Length {
                part: "the payload",
                ..
            })
        ));
    }

    #[test]
    fn modules_whose_lengths_add_up_past_the_end_are_refused() {
        let digest = Digest::of(b"");
        let mut manifest = Manifest::parse(EMPTY).unwrap();
        let keys = ModuleKey::all().take(2);
        let entry_point = |name| EntryPoint {
            name,
            resources: None,
            max_threads: 512,
            pdl: true,
        };
        manifest.modules = keys
            .map(|key| ManifestModule {
                key,
                target: Target::Ptx(Arch::OLDEST),
                ptx_version: Some(PtxVersion { major: 9, minor: 0 }),
                // The most that a manifest may say of one file.
                bytes: MAX_MODULE_BYTES,
                sha256: digest,
                closure_digest: digest,
                cache_key: digest,
                entry_points: key.entry_points().into_iter().map(entry_point).collect(),
            })
            .collect();
        // An index whose first file is longer than all that follows.
        let index = [u32::MAX.to_le_bytes(), [0; 4]].concat();
        let pack = assemble(&manifest.to_json_string(), &index, b"a few bytes");
        let error = Pack::parse(&pack).unwrap_err();
        assert!(
            matches!(
                error,
                PackError::Length {
                    part: "a module",
                    expected: 0xFFFF_FFFF,
                    found: 11
                }
            ),
            "{error}"
        );
    }
}
