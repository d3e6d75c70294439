//! Strict reading: every field is checked, and an error names the field and what is wrong with it.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use thiserror::Error;

use super::json::{Node, Object};
use super::verify::{FileError, read_regular_file};
use super::{
    EntryPoint, KernelResources, MANIFEST_FILE, MANIFEST_SCHEMA, MAX_MANIFEST_BYTES,
    MAX_MODULE_BYTES, Manifest, ManifestModule, SourceEntry,
};
use crate::arch::Target;
use crate::cache_key::CompilerId;
use crate::key::{ModuleKey, WorldSize};
use crate::vocabulary::ParseNameError;

/// Why a directory has no usable manifest.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// There is no manifest.
    #[error("no {}; `cargo xtask precompile` writes one", path.display())]
    NotFound {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    File {
        /// The manifest's path.
        path: PathBuf,
        /// Why.
        error: FileError,
    },
    /// The file's contents are not a manifest of this schema.
    #[error("{}: {error}", path.display())]
    Schema {
        /// The manifest's path.
        path: PathBuf,
        /// What is wrong.
        error: SchemaError,
    },
}

/// Why a text is not a manifest of schema 1. Fields are named by their place, as `modules[3].sha256`.
#[derive(Debug, Error)]
pub enum SchemaError {
    /// Not UTF-8.
    #[error("the manifest is not UTF-8 text; precompile again")]
    NotText,
    /// Not JSON.
    #[error("the manifest cannot be read as JSON ({0}); precompile again")]
    Json(#[from] serde_json::Error),
    /// A schema that is newer than this crate.
    #[error(
        "the manifest has schema {found}, which is newer than {MANIFEST_SCHEMA}: update peersum"
    )]
    NewerSchema {
        /// The manifest's schema.
        found: u64,
    },
    /// A schema that never was.
    #[error("the manifest has schema {found}, which does not exist; precompile again")]
    UnknownSchema {
        /// The manifest's schema.
        found: u64,
    },
    /// A field is absent.
    #[error("the manifest lacks the field `{field}`; precompile again")]
    MissingField {
        /// The field.
        field: String,
    },
    /// A field has another type than it should.
    #[error("the manifest's field `{field}` is not {expected}")]
    WrongType {
        /// The field.
        field: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A field's value is not one of its set, or not of its form.
    #[error("the manifest's field `{field}`: {error}")]
    Unknown {
        /// The field.
        field: String,
        /// What was read, and what is valid.
        error: ParseNameError,
    },
    /// A field contradicts the others.
    #[error("the manifest's field `{field}` is `{found}`, but must be `{expected}`")]
    Mismatch {
        /// The field.
        field: String,
        /// Its value.
        found: String,
        /// What the other fields demand.
        expected: String,
    },
    /// A file name that may lead out of the directory.
    #[error("the manifest's field `{field}` is `{}`, which leads out of its directory", found.escape_debug())]
    PathEscape {
        /// The field.
        field: String,
        /// Its value.
        found: String,
    },
    /// A number beyond what is sensible.
    #[error("the manifest's field `{field}` is {found}; at most {limit} is read")]
    TooLarge {
        /// The field.
        field: String,
        /// Its value.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// Two entries for the same thing.
    #[error("the manifest has two entries for {what}")]
    Duplicate {
        /// What they are both for.
        what: String,
    },
}

impl Manifest {
    /// Reads a manifest's text. Unknown fields are ignored, so that a later version may add some.
    ///
    /// # Errors
    ///
    /// The text is not a manifest of schema 1 that is complete and consistent in itself.
    pub fn parse(text: &str) -> Result<Manifest, SchemaError> {
        let tree = Node::parse(text)?;
        let root = Object::root(&tree)?;
        match root.number("schema")? {
            MANIFEST_SCHEMA => {}
            found if found > MANIFEST_SCHEMA => return Err(SchemaError::NewerSchema { found }),
            found => return Err(SchemaError::UnknownSchema { found }),
        }
        let toolkit = root.object("toolkit")?;
        let manifest = Manifest {
            peersum_version: root.string("peersum_version")?.to_owned(),
            toolkit: CompilerId {
                kind: toolkit.name("compiler")?,
                version: toolkit.string("version")?.to_owned(),
                build: toolkit.string("build")?.to_owned(),
            },
            flags: root.strings("flags")?,
            sources: root
                .objects("sources")?
                .iter()
                .map(source)
                .collect::<Result<_, _>>()?,
            modules: root
                .objects("modules")?
                .iter()
                .map(module)
                .collect::<Result<_, _>>()?,
        };

        let mut paths = BTreeSet::new();
        if let Some(source) = manifest
            .sources
            .iter()
            .find(|source| !paths.insert(&source.path))
        {
            return Err(SchemaError::Duplicate {
                what: format!("the source `{}`", source.path),
            });
        }
        // As a rule they are in their order, where duplicates would be neighbours.
        let mut files = BTreeSet::new();
        if !manifest
            .modules
            .is_sorted_by(|one, next| one.sort_key() < next.sort_key())
            && let Some(module) = manifest
                .modules
                .iter()
                .find(|module| !files.insert(module.sort_key()))
        {
            return Err(SchemaError::Duplicate {
                what: format!("`{}`", module.file_name()),
            });
        }
        Ok(manifest)
    }

    /// Reads the manifest of a directory.
    ///
    /// # Errors
    ///
    /// There is none, or it cannot be read, or it is not one of schema 1. Every message names the path.
    pub fn read_dir(directory: &Path) -> Result<Manifest, ManifestError> {
        Manifest::read_dir_with(directory, Manifest::parse)
    }

    /// As [`Manifest::read_dir`], with the text given to `parse`, which may know it already.
    ///
    /// # Errors
    ///
    /// As [`Manifest::read_dir`]; what `parse` returns gets the path.
    pub fn read_dir_with<T>(
        directory: &Path,
        parse: impl FnOnce(&str) -> Result<T, SchemaError>,
    ) -> Result<T, ManifestError> {
        let path = directory.join(MANIFEST_FILE);
        let bytes = match read_regular_file(&path, MAX_MANIFEST_BYTES) {
            Ok(bytes) => bytes,
            Err(FileError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(ManifestError::NotFound { path });
            }
            Err(error) => return Err(ManifestError::File { path, error }),
        };
        let text = std::str::from_utf8(&bytes).map_err(|_| SchemaError::NotText);
        text.and_then(parse)
            .map_err(|error| ManifestError::Schema { path, error })
    }
}

fn source(entry: &Object<'_>) -> Result<SourceEntry, SchemaError> {
    let path = entry.string("path")?;
    let normal = Path::new(path)
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if path.is_empty() || path.contains(['\0', '\\']) || !normal {
        return Err(SchemaError::PathEscape {
            field: entry.field("path"),
            found: path.to_owned(),
        });
    }
    Ok(SourceEntry {
        path: path.to_owned(),
        sha256: entry.name("sha256")?,
    })
}

fn module(entry: &Object<'_>) -> Result<ManifestModule, SchemaError> {
    let world_size = u32::try_from(entry.number("world_size")?).unwrap_or(u32::MAX);
    let key = ModuleKey {
        family: entry.name("family")?,
        dtype: entry.name("dtype")?,
        world_size: WorldSize::try_from(world_size).map_err(|error| SchemaError::Unknown {
            field: entry.field("world_size"),
            error,
        })?,
    };
    let target: Target = entry.name("arch")?;
    entry.must_be("name", &key.name())?;
    entry.must_be("kind", target.kind())?;
    // An escape gets its own error before the comparison: it is an attack or a serious bug, not a mere mismatch.
    let file = entry.string("file")?;
    if file.is_empty() || file == "." || file == ".." || file.contains(['/', '\\', '\0']) {
        return Err(SchemaError::PathEscape {
            field: entry.field("file"),
            found: file.to_owned(),
        });
    }
    entry.must_be("file", &target.file_name(&key))?;

    let is_cubin = matches!(target, Target::Cubin(_));
    let entry_points = entry.objects("entry_points")?;
    let names = key.entry_points();
    if entry_points.len() != names.len() {
        return Err(SchemaError::Mismatch {
            field: entry.field("entry_points"),
            found: format!("{} entries", entry_points.len()),
            expected: format!("{} entries: {}", names.len(), names.join(", ")),
        });
    }
    Ok(ManifestModule {
        key,
        target,
        ptx_version: if is_cubin {
            None
        } else {
            Some(entry.name("ptx_version")?)
        },
        bytes: entry.number_up_to("bytes", MAX_MODULE_BYTES)?,
        sha256: entry.name("sha256")?,
        closure_digest: entry.name("closure_digest")?,
        cache_key: entry.name("key")?,
        entry_points: entry_points
            .iter()
            .zip(&names)
            .map(|(entry_point, name)| {
                entry_point.must_be("name", name)?;
                Ok(EntryPoint {
                    name: name.clone(),
                    resources: if is_cubin {
                        Some(resources(entry_point)?)
                    } else {
                        None
                    },
                    max_threads: entry_point.number32("max_threads")?,
                    pdl: entry_point.boolean("pdl")?,
                })
            })
            .collect::<Result<_, SchemaError>>()?,
    })
}

fn resources(entry_point: &Object<'_>) -> Result<KernelResources, SchemaError> {
    Ok(KernelResources {
        registers: entry_point.number32("registers")?,
        spill_bytes: entry_point.number32("spill_bytes")?,
        shared_bytes: entry_point.number32("shared_bytes")?,
    })
}
