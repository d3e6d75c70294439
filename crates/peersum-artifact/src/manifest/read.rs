//! Reading a manifest. An error names the place in the document and what is wrong there.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use thiserror::Error;

use super::model::{MANIFEST_FILE, MANIFEST_SCHEMA, MAX_MANIFEST_BYTES, Manifest};
use super::verify::{FileError, read_regular_file};

/// The most values of one manifest, ten times those of the whole matrix for ten architectures.
/// Without a limit, a hostile text of empty strings would take ten times its length in memory.
const MAX_VALUES: usize = 1 << 17;

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

/// Why a text is not a manifest of schema 2.
#[derive(Debug, Error)]
pub enum SchemaError {
    /// Not UTF-8.
    #[error("the manifest is not UTF-8 text; precompile again")]
    NotText,
    /// Not JSON.
    #[error("the manifest cannot be read as JSON ({0}); precompile again")]
    Json(serde_json::Error),
    /// A schema that is newer than this crate.
    #[error(
        "the manifest has schema {found}, which is newer than {MANIFEST_SCHEMA}: update peersum"
    )]
    NewerSchema {
        /// The manifest's schema.
        found: u64,
    },
    /// A schema of an older version, or none that ever was.
    #[error(
        "the manifest has schema {found}, and this version writes {MANIFEST_SCHEMA}; precompile \
         again"
    )]
    UnknownSchema {
        /// The manifest's schema.
        found: u64,
    },
    /// A field is missing, is there twice, has another type, or contradicts the others.
    #[error("the manifest is not valid at `{place}`: {problem}; precompile again")]
    Invalid {
        /// The value that is wrong, as `modules[3].sha256`; `.` is the whole manifest.
        place: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// What every schema has.
#[derive(Deserialize)]
struct Header {
    schema: u64,
}

impl Manifest {
    /// Reads a manifest's text. Unknown fields are ignored, so that a later version may add some.
    ///
    /// # Errors
    ///
    /// The text is not a manifest of schema 2 that is complete and consistent in itself.
    pub fn parse(text: &str) -> Result<Manifest, SchemaError> {
        // Every value but the first of a list or an object follows a comma.
        if text.bytes().filter(|byte| *byte == b',').count() >= MAX_VALUES {
            return Err(SchemaError::Invalid {
                place: ".".to_owned(),
                problem: format!("it has more than {MAX_VALUES} values"),
            });
        }
        serde_json::from_str(text).map_err(|error| explain(text, error))
    }

    /// Reads the manifest of a directory.
    ///
    /// # Errors
    ///
    /// There is none, or it cannot be read, or it is not one of schema 2. Every message names the
    /// path.
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

/// Says why a text was refused. This reads it again with an account of the place, which is slower.
fn explain(text: &str, refusal: serde_json::Error) -> SchemaError {
    if let Err(error) = serde_json::from_str::<IgnoredAny>(text) {
        return SchemaError::Json(error);
    }
    // Another schema may have another form, so its number comes first.
    match serde_json::from_str(text) {
        Ok(Header { schema }) if schema > MANIFEST_SCHEMA => {
            return SchemaError::NewerSchema { found: schema };
        }
        Ok(Header { schema }) if schema < MANIFEST_SCHEMA => {
            return SchemaError::UnknownSchema { found: schema };
        }
        _ => {}
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    let again: Result<Manifest, _> = serde_path_to_error::deserialize(&mut reader);
    match again {
        Err(error) => SchemaError::Invalid {
            place: error.path().to_string(),
            problem: error.into_inner().to_string(),
        },
        Ok(_) => SchemaError::Json(refusal),
    }
}
