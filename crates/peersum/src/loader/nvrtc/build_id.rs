//! The build id of a library file, read without loading it.

use std::fs::File;
use std::path::Path;

use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, FileKind, ReadCache};

/// The GNU build id in the notes of the ELF file at `path`, in hexadecimal. The library is not
/// loaded; only its headers and notes are read. `None` if the file has none or is no ELF file.
///
/// # Errors
///
/// The I/O error if the file cannot be opened.
pub fn build_id(path: &Path) -> std::io::Result<Option<String>> {
    let data = ReadCache::new(File::open(path)?);
    Ok(match FileKind::parse(&data) {
        Ok(FileKind::Elf64) => find_build_id(&data),
        _ => None,
    })
}

fn find_build_id(data: &ReadCache<File>) -> Option<String> {
    let header = object::elf::FileHeader64::<Endianness>::parse(data).ok()?;
    let endian = header.endian().ok()?;
    for segment in header.program_headers(endian, data).ok()? {
        let Some(mut notes) = segment.notes(endian, data).ok().flatten() else {
            continue;
        };
        while let Some(note) = notes.next().ok().flatten() {
            if note.name() == object::elf::ELF_NOTE_GNU
                && note.n_type(endian) == object::elf::NT_GNU_BUILD_ID
            {
                let bytes = note.desc().iter();
                return Some(bytes.map(|byte| format!("{byte:02x}")).collect());
            }
        }
    }
    None
}
