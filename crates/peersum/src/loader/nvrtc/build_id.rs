//! The build id of a library file, read without loading it.

use std::fs::File;
use std::path::Path;

use object::read::elf::ElfFile64;
use object::{Object, ReadCache};

/// The GNU build id in the notes of the ELF file at `path`, in hexadecimal. The library is not
/// loaded; only its headers, tables and notes are read. `None` if the file has none or is no ELF
/// file.
///
/// # Errors
///
/// The I/O error if the file cannot be opened.
pub fn build_id(path: &Path) -> std::io::Result<Option<String>> {
    let data = ReadCache::new(File::open(path)?);
    let library = ElfFile64::<object::Endianness, _>::parse(&data).ok();
    let id = library
        .as_ref()
        .and_then(|library| library.build_id().ok()?);
    Ok(id.map(|bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
}
