//! Real cubins of two CUDA releases are read, and nothing else is accepted as one.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up fails")]

use peersum_artifact::{Arch, ElfError, Family, inspect_cubin, text_sections};

mod support;
use support::{data, key, seed};

const CUBINS: [&str; 5] = [
    "push.sm_80.cubin",
    "push.sm_90.cubin",
    "pull.sm_90.cubin",
    "push.sm_100f.cubin",
    "push.cuda12.sm_90.cubin",
];

/// Cubins for one architecture alone, each with that architecture.
const SPECIFIC: [(&str, Arch); 3] = [
    ("push.sm_90a.cubin", Arch::new(9, 0)),
    ("push.cuda12.sm_90a.cubin", Arch::new(9, 0)),
    ("push.cuda12.sm_100a.cubin", Arch::new(10, 0)),
];

const SHT_NOBITS: u32 = 8;

fn u16_at(bytes: &[u8], offset: usize) -> usize {
    usize::from(u16::from_le_bytes(
        bytes[offset..offset + 2].try_into().unwrap(),
    ))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], offset: usize) -> usize {
    usize::try_from(u64::from_le_bytes(
        bytes[offset..offset + 8].try_into().unwrap(),
    ))
    .unwrap()
}

/// The offsets of the section headers, read without the code under test.
fn section_headers(bytes: &[u8]) -> Vec<usize> {
    let (table, size, count) = (
        u64_at(bytes, 0x28),
        u16_at(bytes, 0x3a),
        u16_at(bytes, 0x3c),
    );
    (0..count).map(|index| table + index * size).collect()
}

#[test]
fn the_architecture_is_read_from_either_layout() {
    for (name, arch, abi_version) in [
        ("push.sm_80.cubin", "80", 8),
        ("push.sm_90.cubin", "90", 8),
        ("push.sm_100f.cubin", "100", 8),
        ("push.cuda12.sm_90.cubin", "90", 7),
    ] {
        let cubin = inspect_cubin(&data(name)).unwrap();
        assert_eq!(
            (cubin.arch.to_string().as_str(), cubin.abi_version),
            (arch, abi_version),
            "{name}"
        );
    }
}

#[test]
fn a_cubin_for_one_architecture_alone_is_refused() {
    for (name, arch) in SPECIFIC {
        let error = inspect_cubin(&data(name)).unwrap_err();
        assert_eq!(error, ElfError::Specific { arch }, "{name}");
    }
}

#[test]
fn entry_points_are_the_kernels_and_no_device_function() {
    for name in CUBINS {
        let family = if name.starts_with("pull") {
            Family::Pull
        } else {
            Family::Push
        };
        assert_eq!(
            inspect_cubin(&data(name)).unwrap().entry_points,
            key(family).entry_points(),
            "{name}"
        );
    }
}

#[test]
fn the_machine_code_is_given_for_each_kernel() {
    let cubin = data("push.sm_90.cubin");
    let sections = text_sections(&cubin).unwrap();
    let names: Vec<&str> = sections.iter().map(|(name, _)| *name).collect();
    let entry_points = key(Family::Push).entry_points().into_iter();
    let expected: Vec<String> = entry_points.map(|name| format!(".text.{name}")).collect();
    assert_eq!(names, expected);
    // Instructions of 16 bytes in sections aligned to 128.
    assert!(
        sections
            .iter()
            .all(|(_, code)| !code.is_empty() && code.len() % 128 == 0)
    );
}

#[test]
fn machine_code_is_equal_where_only_the_notes_of_two_files_differ() {
    let (plain, specific) = (data("push.sm_90.cubin"), data("push.sm_90a.cubin"));
    assert_ne!(plain, specific);
    assert_eq!(
        text_sections(&plain).unwrap(),
        text_sections(&specific).unwrap()
    );
    for other in ["push.sm_80.cubin", "pull.sm_90.cubin"] {
        assert_ne!(
            text_sections(&plain).unwrap(),
            text_sections(&data(other)).unwrap()
        );
    }
}

#[test]
fn a_cubin_cut_off_anywhere_is_refused() {
    for name in CUBINS.into_iter().chain(SPECIFIC.map(|(name, _)| name)) {
        let whole = data(name);
        for length in 0..whole.len() {
            assert!(
                inspect_cubin(&whole[..length]).is_err(),
                "{name}, its first {length} bytes"
            );
            assert!(
                text_sections(&whole[..length]).is_err(),
                "{name}, its first {length} bytes"
            );
        }
    }
}

#[test]
fn a_section_that_reaches_past_the_end_is_refused() {
    let whole = data("push.sm_90.cubin");
    let mut tried = 0;
    for header in section_headers(&whole).into_iter().skip(1) {
        if u32_at(&whole, header + 4) == SHT_NOBITS {
            continue;
        }
        let (offset, size) = (header + 0x18, header + 0x20);
        let past_the_end = [
            (offset, whole.len() as u64 + 1),
            (offset, u64::MAX),
            (size, whole.len() as u64),
            (size, u64::MAX),
        ];
        for (field, value) in past_the_end {
            let mut bytes = whole.clone();
            bytes[field..field + 8].copy_from_slice(&value.to_le_bytes());
            // A size that is added to an offset of 64 or more; an empty section may lie anywhere up
            // to the end.
            let error = inspect_cubin(&bytes).unwrap_err();
            assert!(matches!(error, ElfError::Truncated { .. }), "{error}");
            tried += 1;
        }
    }
    assert!(tried > 40, "{tried}");
}

#[test]
fn a_segment_that_reaches_past_the_end_is_refused() {
    let mut bytes = data("push.sm_90.cubin");
    let segment = u64_at(&bytes, 0x20) + u16_at(&bytes, 0x36);
    bytes[segment + 0x20..segment + 0x28].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    assert_eq!(
        inspect_cubin(&bytes),
        Err(ElfError::Truncated {
            part: "segment 1".to_owned()
        })
    );
}

#[test]
fn what_is_no_cubin_is_refused_by_its_reason() {
    assert_eq!(inspect_cubin(b""), Err(ElfError::NotElf));
    assert_eq!(
        inspect_cubin(&data("push.compute_80.ptx")),
        Err(ElfError::NotElf)
    );
    assert_eq!(
        inspect_cubin(&data("relocatable.sm_90.cubin")),
        Err(ElfError::Relocatable)
    );
    let edited = |offset: usize, value: u8| {
        let mut bytes = data("push.sm_90.cubin");
        bytes[offset] = value;
        inspect_cubin(&bytes)
    };
    assert_eq!(edited(0, 0x7e), Err(ElfError::NotElf));
    assert_eq!(edited(4, 1), Err(ElfError::NotElf), "32 bits");
    assert_eq!(edited(5, 2), Err(ElfError::NotElf), "big-endian");
    assert_eq!(edited(18, 62), Err(ElfError::NotCuda { machine: 62 }));
    for abi_version in [0, 6, 9, 255] {
        assert_eq!(
            edited(8, abi_version),
            Err(ElfError::UnknownAbi { abi_version })
        );
    }
    assert!(matches!(
        edited(0x31, 0),
        Err(ElfError::NoArchitecture { .. })
    ));
    // This test's own program is an ELF file, for another machine.
    let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    assert!(matches!(inspect_cubin(&own), Err(ElfError::NotCuda { .. })));
}

#[test]
fn a_kernel_without_its_section_is_refused() {
    // The name in .strtab and the one in .shstrtab are stored apart, so one can be edited alone.
    let whole = data("push.sm_90.cubin");
    let needle = b".text.peersum_push_one_shot_bf16_ws8\0";
    let at = whole
        .windows(needle.len())
        .position(|window| window == needle)
        .unwrap();
    let mut bytes = whole.clone();
    bytes[at + 6] = b'q';
    assert!(matches!(
        inspect_cubin(&bytes),
        Err(ElfError::Malformed { .. })
    ));
}

fn refusal(bytes: &[u8]) -> String {
    let error = inspect_cubin(bytes).unwrap_err();
    assert!(text_sections(bytes).is_err() || matches!(error, ElfError::Malformed { .. }));
    error.to_string()
}

#[test]
fn tables_whose_place_or_size_overflows_are_refused() {
    let whole = data("push.sm_90.cubin");
    let end = whole.len() as u64;
    // Where the program headers and the section headers begin; how many there are.
    for place in [0x20, 0x28] {
        for offset in [u64::MAX, u64::MAX - 63, 1 << 63, end, end - 1] {
            let mut bytes = whole.clone();
            bytes[place..place + 8].copy_from_slice(&offset.to_le_bytes());
            assert!(
                refusal(&bytes).contains("header table"),
                "{offset} at {place}"
            );
        }
    }
    for place in [0x38, 0x3c] {
        let mut bytes = whole.clone();
        bytes[place..place + 2].copy_from_slice(&0xfffe_u16.to_le_bytes());
        assert!(refusal(&bytes).contains("header table"), "at {place}");
    }
    // The header has no count: the first section's size holds it.
    let mut bytes = whole.clone();
    bytes[0x3c..0x3e].fill(0);
    let first = section_headers(&whole)[0];
    bytes[first + 0x20..first + 0x28].copy_from_slice(&u64::MAX.to_le_bytes());
    refusal(&bytes);
}

/// Where a name is stored: in the table of section names if it begins with `.text.`, else in that
/// of symbol names.
fn place_of(whole: &[u8], name: &str) -> usize {
    let name = format!("\0{name}\0");
    let found = whole
        .windows(name.len())
        .position(|window| window == name.as_bytes());
    found.unwrap() + 1
}

#[test]
fn names_that_are_no_text_have_no_end_or_are_too_long_are_refused() {
    let whole = data("push.sm_90.cubin");
    let section = ".text.peersum_push_one_shot_bf16_ws8";
    let mut bytes = whole.clone();
    bytes[place_of(&whole, section) + 8] = 0xff;
    assert!(refusal(&bytes).contains("UTF-8"));

    let header = section_headers(&whole)[1];
    for offset in [u32::MAX, 1 << 20] {
        let mut bytes = whole.clone();
        bytes[header..header + 4].copy_from_slice(&offset.to_le_bytes());
        assert!(refusal(&bytes).contains("outside the table"), "{offset}");
    }

    // The table of names is moved to the end, where it holds one long name.
    let names = section_headers(&whole)[u16_at(&whole, 0x3e)];
    for (length, reason) in [(4096, None), (4097, Some("more than 4096 bytes"))] {
        let mut bytes = whole.clone();
        let at = u64_at(&whole, names + 0x18);
        let size = u64_at(&whole, names + 0x20);
        let table = whole[at..at + size].to_vec();
        bytes[names + 0x18..names + 0x20].copy_from_slice(&(whole.len() as u64).to_le_bytes());
        bytes[names + 0x20..names + 0x28]
            .copy_from_slice(&((size + length + 1) as u64).to_le_bytes());
        bytes.extend(table);
        bytes.extend(vec![b'n'; length]);
        bytes.push(0);
        // The first section without code gets the long name.
        let plain = section_headers(&whole)
            .into_iter()
            .find(|header| u32_at(&whole, header + 4) == 3)
            .unwrap();
        bytes[plain..plain + 4].copy_from_slice(&(size as u32).to_le_bytes());
        match reason {
            None => assert!(inspect_cubin(&bytes).is_ok()),
            Some(reason) => assert!(refusal(&bytes).contains(reason)),
        }
    }
}

#[test]
fn a_second_kernel_of_a_name_is_refused() {
    const SHT_SYMTAB: u32 = 2;
    const SYMBOL_BYTES: usize = 24;
    let whole = data("push.sm_90.cubin");
    let table = section_headers(&whole)
        .into_iter()
        .find(|header| u32_at(&whole, header + 4) == SHT_SYMTAB)
        .unwrap();
    let (at, size) = (u64_at(&whole, table + 0x18), u64_at(&whole, table + 0x20));
    // A bit in the sixth byte marks kernels.
    let kernels: Vec<usize> = (at..at + size)
        .step_by(SYMBOL_BYTES)
        .filter(|symbol| whole[symbol + 4] == 0x12 && whole[symbol + 5] & 0x10 != 0)
        .collect();
    assert_eq!(kernels.len(), 3);
    let mut bytes = whole.clone();
    bytes.copy_within(kernels[0]..kernels[0] + SYMBOL_BYTES, kernels[1]);
    assert!(refusal(&bytes).contains("two kernels peersum_push_"));
}

#[test]
fn no_edit_makes_the_reader_panic() {
    let mut random = fastrand::Rng::with_seed(seed());
    let mut accepted = 0_u32;
    let rounds = 6000;
    for round in 0..rounds {
        let name = CUBINS[round % CUBINS.len()];
        let mut bytes = data(name);
        let headers = section_headers(&bytes);
        for _ in 0..random.usize(1..8) {
            // Half of the edits hit the tables, where a byte matters most.
            let at = match random.u8(0..4) {
                0 => random.usize(0..64),
                1 => headers[random.usize(0..headers.len())] + random.usize(0..64),
                _ => random.usize(0..bytes.len()),
            };
            bytes[at] = if random.bool() {
                random.u8(..)
            } else {
                bytes[at] ^ 1 << random.u8(0..8)
            };
        }
        match random.u8(0..8) {
            0 => bytes.truncate(random.usize(0..bytes.len())),
            1 => bytes.extend((0..random.usize(0..64)).map(|_| 0xff)),
            _ => {}
        }
        accepted += u32::from(inspect_cubin(&bytes).is_ok());
        // The two readers agree on which files are whole.
        if inspect_cubin(&bytes).is_ok() {
            text_sections(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
    for _ in 0..2000 {
        let noise: Vec<u8> = (0..random.usize(0..512)).map(|_| random.u8(..)).collect();
        assert!(inspect_cubin(&noise).is_err());
        let mut headed = data("push.sm_90.cubin")[..64].to_vec();
        headed.extend(noise);
        let _ = (inspect_cubin(&headed), text_sections(&headed));
    }
    // Most edits hit code or padding: without this, a reader that refuses everything would pass.
    assert!(
        accepted > 100,
        "only {accepted} of {rounds} edited cubins were read to the end"
    );
}
