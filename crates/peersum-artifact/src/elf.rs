//! What the ELF headers of a cubin say.
//!
//! The driver's `cuModuleLoadData` takes no length and trusts what it reads, so a file is checked
//! here first: every table, section and segment must lie within it.

use std::collections::BTreeSet;

use object::LittleEndian;
use object::elf::{
    EM_CUDA, ET_EXEC, FileHeader64, PT_NULL, SHF_EXECINSTR, SHT_NOBITS, SHT_NULL, SHT_PROGBITS,
    STB_GLOBAL, STT_FUNC,
};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, SectionTable, Sym};
use object::{SectionIndex, elf::SHT_SYMTAB};
use thiserror::Error;

use crate::arch::Arch;

type Header = FileHeader64<LittleEndian>;
const ENDIAN: LittleEndian = LittleEndian;

const TEXT_PREFIX: &str = ".text.";

/// The longest name that is read. Names may overlap in their table, so without a bound many long
/// ones would need memory and time that grow with the square of the file's size.
const MAX_NAME_BYTES: usize = 4096;

/// The most kernels of one cubin. peersum's have up to three.
const MAX_KERNELS: usize = 256;

/// What the ELF headers of a cubin say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CubinInfo {
    /// The architecture that the code is for. Code for a family, such as `100f`, leaves the marks
    /// of the plain one.
    pub arch: Arch,
    /// The ELF's ABI version: CUDA 12 writes 7 up to sm_90 and 8 from sm_100 on, CUDA 13 writes 8
    /// throughout.
    pub abi_version: u8,
    /// The names of the kernels, sorted.
    pub entry_points: Vec<String>,
}

/// Why bytes are not a usable cubin.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ElfError {
    /// Not an ELF file at all, or not of 64 bits and little-endian.
    #[error("not a 64-bit little-endian ELF file")]
    NotElf,
    /// An ELF file for something else.
    #[error("an ELF file for machine {machine}, not for CUDA ({})", EM_CUDA.0)]
    NotCuda {
        /// The machine number.
        machine: u16,
    },
    /// An object file that still has to be linked, which no driver loads.
    #[error("a relocatable CUDA object, not a linked cubin")]
    Relocatable,
    /// An ABI version whose flags this crate cannot read.
    #[error(
        "a cubin of ABI version {abi_version}, whose architecture this version of peersum cannot \
         read (it knows 7 and 8)"
    )]
    UnknownAbi {
        /// The ABI version.
        abi_version: u8,
    },
    /// The flags hold no architecture.
    #[error("a cubin whose flags {flags:#010x} name no architecture")]
    NoArchitecture {
        /// The flags.
        flags: u32,
    },
    /// The code is for exactly one architecture, as that of `sm_90a` is.
    #[error("a cubin for sm_{arch}a alone, which no module of peersum is")]
    Specific {
        /// The architecture.
        arch: Arch,
    },
    /// A part of the file lies beyond its end.
    #[error("truncated: {part} lies beyond the file's end")]
    Truncated {
        /// Which part.
        part: String,
    },
    /// The tables contradict each other.
    #[error("malformed ELF: {problem}")]
    Malformed {
        /// What is wrong.
        problem: String,
    },
}

/// Reads the headers of a cubin, and checks that all they refer to lies within the file.
///
/// # Errors
///
/// The bytes are not a whole cubin of a known ABI version. No input panics.
pub fn inspect_cubin(bytes: &[u8]) -> Result<CubinInfo, ElfError> {
    let cubin = Cubin::parse(bytes)?;
    Ok(CubinInfo {
        arch: arch(&cubin)?,
        abi_version: cubin.header.e_ident.abi_version,
        entry_points: entry_points(&cubin)?,
    })
}

/// The machine code of a cubin: each `.text.*` section's name and contents, sorted by name.
///
/// Two builds of the same code by different tools of one toolkit version agree here even where
/// their notes differ.
///
/// # Errors
///
/// As [`inspect_cubin`].
pub fn text_sections(bytes: &[u8]) -> Result<Vec<(&str, &[u8])>, ElfError> {
    let cubin = Cubin::parse(bytes)?;
    let mut texts = Vec::new();
    for section in cubin.sections.iter() {
        let name = cubin.name(section)?;
        if name.starts_with(TEXT_PREFIX) && is_code(section) {
            texts.push((name, cubin.data(section, name)?));
        }
    }
    texts.sort_unstable();
    Ok(texts)
}

type SectionHeader64 = <Header as FileHeader>::SectionHeader;

fn truncated(part: impl Into<String>) -> ElfError {
    ElfError::Truncated { part: part.into() }
}

fn malformed(problem: impl Into<String>) -> ElfError {
    ElfError::Malformed {
        problem: problem.into(),
    }
}

/// What `object` finds wrong with a table.
fn contradiction(error: object::Error) -> ElfError {
    malformed(error.to_string())
}

/// Whether `offset..offset + size` lies within a file of `length` bytes.
fn within(offset: u64, size: u64, length: usize) -> bool {
    let end = offset.checked_add(size);
    end.is_some_and(|end| end <= length as u64)
}

/// A file whose tables, sections and segments lie within it, and whose sections have readable
/// names.
struct Cubin<'data> {
    bytes: &'data [u8],
    header: &'data Header,
    sections: SectionTable<'data, Header>,
    section_names: &'data [u8],
}

impl<'data> Cubin<'data> {
    fn parse(bytes: &'data [u8]) -> Result<Self, ElfError> {
        let header = Header::parse(bytes).map_err(|_| ElfError::NotElf)?;
        if !header.is_little_endian() {
            return Err(ElfError::NotElf);
        }
        let machine = header.e_machine(ENDIAN);
        if machine != EM_CUDA {
            return Err(ElfError::NotCuda { machine: machine.0 });
        }
        if header.e_type(ENDIAN) != ET_EXEC {
            return Err(ElfError::Relocatable);
        }

        let segments = header
            .program_headers(ENDIAN, bytes)
            .map_err(|_| truncated("the program header table"))?;
        for (index, segment) in segments.iter().enumerate() {
            let (offset, size) = (segment.p_offset(ENDIAN), segment.p_filesz(ENDIAN));
            if segment.p_type(ENDIAN) != PT_NULL && !within(offset, size, bytes.len()) {
                return Err(truncated(format!("segment {index}")));
            }
        }

        // Check bounds before names: the section of the names itself may be cut off.
        let headers = header
            .section_headers(ENDIAN, bytes)
            .map_err(|_| truncated("the section header table"))?;
        for (index, section) in headers.iter().enumerate() {
            let kind = section.sh_type(ENDIAN);
            let (offset, size) = (section.sh_offset(ENDIAN), section.sh_size(ENDIAN));
            if kind != SHT_NULL && kind != SHT_NOBITS && !within(offset, size, bytes.len()) {
                return Err(truncated(format!("section {index}")));
            }
        }
        let sections = header.sections(ENDIAN, bytes).map_err(contradiction)?;
        if sections.is_empty() {
            return Err(malformed("it has no sections"));
        }
        let names = header
            .section_strings_index(ENDIAN, bytes)
            .map_err(contradiction)?;
        let mut cubin = Self {
            bytes,
            header,
            sections,
            section_names: &[],
        };
        cubin.section_names = cubin.strings(names)?;
        for section in cubin.sections.iter() {
            cubin.name(section)?;
        }
        Ok(cubin)
    }

    fn data(&self, section: &SectionHeader64, name: &str) -> Result<&'data [u8], ElfError> {
        section
            .data(ENDIAN, self.bytes)
            .map_err(|_| truncated(format!("section {name}")))
    }

    fn strings(&self, section: SectionIndex) -> Result<&'data [u8], ElfError> {
        let section = self.sections.section(section).map_err(contradiction)?;
        self.data(section, "of names")
    }

    fn name(&self, section: &SectionHeader64) -> Result<&'data str, ElfError> {
        name_at(self.section_names, section.sh_name(ENDIAN))
    }
}

/// The name that begins at `offset` of a table of names.
fn name_at(names: &[u8], offset: u32) -> Result<&str, ElfError> {
    let rest = usize::try_from(offset)
        .ok()
        .and_then(|offset| names.get(offset..))
        .ok_or_else(|| malformed("a name lies outside the table of names"))?;
    let end = rest
        .iter()
        .take(MAX_NAME_BYTES + 1)
        .position(|byte| *byte == 0)
        .ok_or_else(|| {
            malformed(format!(
                "a name has no end, or more than {MAX_NAME_BYTES} bytes"
            ))
        })?;
    std::str::from_utf8(&rest[..end]).map_err(|_| malformed("a name is not UTF-8"))
}

fn is_code(section: &SectionHeader64) -> bool {
    section.sh_type(ENDIAN) == SHT_PROGBITS && section.sh_flags(ENDIAN).contains(SHF_EXECINSTR)
}

/// Where each ABI version keeps the architecture in the header's flags, and its bit for the `a`
/// variant.
const ABI_LAYOUTS: &[(u8, u32, u32)] = &[(7, 0, 0x800), (8, 8, 0x8)];

fn arch(cubin: &Cubin<'_>) -> Result<Arch, ElfError> {
    let abi_version = cubin.header.e_ident.abi_version;
    let flags = cubin.header.e_flags(ENDIAN).0;
    let &(_, shift, accelerator_bit) = ABI_LAYOUTS
        .iter()
        .find(|(version, _, _)| *version == abi_version)
        .ok_or(ElfError::UnknownAbi { abi_version })?;
    let number = (flags >> shift & 0xff) as u8;
    let (major, minor) = (number / 10, number % 10);
    if major == 0 {
        return Err(ElfError::NoArchitecture { flags });
    }
    let arch = Arch { major, minor };
    match flags & accelerator_bit != 0 || compat_says_specific(cubin)? {
        true => Err(ElfError::Specific { arch }),
        false => Ok(arch),
    }
}

const COMPAT_SECTION: &str = ".nv.compat";
const COMPAT_ACCELERATOR_TARGET: u8 = 9;

/// Whether `.nv.compat` says that the code is for exactly one architecture. ptxas of CUDA 13.0
/// marks `a` targets there and not in the header's flags.
fn compat_says_specific(cubin: &Cubin<'_>) -> Result<bool, ElfError> {
    let named =
        |section: &&SectionHeader64| cubin.name(section).is_ok_and(|name| name == COMPAT_SECTION);
    let Some(section) = cubin.sections.iter().find(named) else {
        return Ok(false);
    };
    let mut rest = cubin.data(section, COMPAT_SECTION)?;
    // Each attribute: a format, a number, and two bytes, which are its value or (format 4) the
    // length of what follows.
    while let [format, attribute, low, high, tail @ ..] = rest {
        rest = match (*format, *attribute) {
            (1..=3, COMPAT_ACCELERATOR_TARGET) if *low != 0 => return Ok(true),
            (1..=3, _) => tail,
            (4, _) => {
                let length = usize::from(u16::from_le_bytes([*low, *high]));
                tail.get(length..)
                    .ok_or_else(|| truncated(format!("an attribute of {COMPAT_SECTION}")))?
            }
            (format, _) => {
                return Err(malformed(format!(
                    "an attribute of {COMPAT_SECTION} has the unknown format {format}"
                )));
            }
        };
    }
    Ok(false)
}

/// The bit of a symbol's `st_other` that tells kernels from device functions.
const STO_CUDA_ENTRY: u8 = 0x10;

/// Kernels are global functions with the entry bit, each with a `.text` section of its own name.
fn entry_points(cubin: &Cubin<'_>) -> Result<Vec<String>, ElfError> {
    let symbols = cubin
        .sections
        .symbols(ENDIAN, cubin.bytes, SHT_SYMTAB)
        .map_err(contradiction)?;
    let mut symbol_names = None;
    let mut names = BTreeSet::new();
    for symbol in symbols.iter() {
        let is_global = symbol.st_type() == STT_FUNC
            && symbol.st_bind() == STB_GLOBAL
            && !symbol.is_undefined(ENDIAN);
        if !is_global || symbol.st_other().0 & STO_CUDA_ENTRY == 0 {
            continue;
        }
        let table = match symbol_names {
            Some(table) => table,
            None => *symbol_names.insert(cubin.strings(symbols.string_section())?),
        };
        let name = name_at(table, symbol.st_name(ENDIAN))?;
        let section = cubin
            .sections
            .section(SectionIndex(usize::from(symbol.st_shndx(ENDIAN).0)))
            .map_err(|_| malformed(format!("the kernel {name} lies in no section")))?;
        let own_section = cubin.name(section)?.strip_prefix(TEXT_PREFIX) == Some(name);
        if !own_section || !is_code(section) {
            return Err(malformed(format!(
                "the kernel {name} lacks its section {TEXT_PREFIX}{name}"
            )));
        }
        let size = symbol.st_size(ENDIAN);
        let end = symbol.st_value(ENDIAN).checked_add(size);
        if size == 0 || end.is_none_or(|end| end > section.sh_size(ENDIAN)) {
            return Err(malformed(format!(
                "the code of {name} does not lie within its section"
            )));
        }
        if !names.insert(name.to_owned()) {
            return Err(malformed(format!("it has two kernels {name}")));
        }
        if names.len() > MAX_KERNELS {
            return Err(malformed(format!("it has more than {MAX_KERNELS} kernels")));
        }
    }
    Ok(names.into_iter().collect())
}
