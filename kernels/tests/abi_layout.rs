//! The bindings have the same layout as what a C and a C++ compiler make of the same header.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up fails")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::mem::{align_of, offset_of, size_of};
use std::path::Path;
use std::process::Command;

use peersum_kernels::abi::*;

/// C expressions and their values, according to a compiler or to the bindings.
type Facts = BTreeMap<String, u64>;

fn header() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("abi.h")
}

/// Adds the size and alignment of a structure, and the offset and size of each field. Does not
/// compile if a field is left out.
macro_rules! structure {
    ($facts:ident, $type:ident { $($field:ident),+ $(,)? }) => {
        let name = stringify!($type);
        $facts.insert(format!("sizeof({name})"), size_of::<$type>() as u64);
        $facts.insert(format!("__alignof__({name})"), align_of::<$type>() as u64);
        $(
            let field = stringify!($field);
            $facts.insert(
                format!("__builtin_offsetof({name}, {field})"),
                offset_of!($type, $field) as u64,
            );
        )+
        let sizes = |$type { $($field),+ }: &$type| {
            [$((stringify!($field), size_of_val($field) as u64)),+]
        };
        for (field, size) in sizes(&zeroed()) {
            $facts.insert(format!("sizeof((({name} *)0)->{field})"), size);
        }
    };
}

/// A value whose contents do not matter.
fn zeroed<T: Copy>() -> T {
    // SAFETY: the bindings are plain numbers and arrays of integers, for which all-zero bits are a
    // valid value.
    unsafe { std::mem::zeroed() }
}

macro_rules! constants {
    ($facts:ident, $($name:ident),+ $(,)?) => {
        $($facts.insert(stringify!($name).to_owned(), u64::from($name));)+
    };
}

fn bindings() -> Facts {
    let mut facts = structures();
    facts.extend(constants());
    facts
}

fn structures() -> Facts {
    let mut facts = shared_structures();
    structure!(
        facts,
        PeersumParams {
            arena,
            source,
            input,
            output,
            elements,
            push_offset,
            push_half_bytes,
            staging_offset,
            staging_half_bytes,
            status,
            timeout_ns,
            header,
            detail,
            norm_words,
            residual,
            weight,
            hidden,
            epsilon,
            weight_offset,
            rows,
            fp8_values,
            fp8_inverse_scale,
            fp8_row_scales,
            rank,
            flags,
            chunk_stride
        }
    );
    facts
}

/// Those in memory that others read.
fn shared_structures() -> Facts {
    let mut facts = Facts::new();
    structure!(
        facts,
        PeersumBlockState {
            pull_epoch,
            push_epoch,
            poison
        }
    );
    structure!(
        facts,
        PeersumControl {
            blocks,
            headers,
            own_headers,
            details,
            own_details,
            norm_words,
            own_norm_words,
            leave_claim,
            reserved,
            pull_flags
        }
    );
    structure!(
        facts,
        PeersumStatus {
            abort,
            padding,
            valid,
            cause,
            rank,
            peer,
            family,
            algorithm,
            block,
            origin,
            epoch,
            waited_ns,
            own_header,
            peer_header,
            own_detail,
            peer_detail,
            own_norm_words,
            peer_norm_words,
            padding_end,
        }
    );
    facts
}

/// The values that name a kind.
fn enumerations() -> Facts {
    let mut facts = Facts::new();
    constants!(
        facts,
        PEERSUM_FAMILY_PUSH,
        PEERSUM_FAMILY_PULL,
        PEERSUM_ALGORITHM_ONE_SHOT,
        PEERSUM_ALGORITHM_TWO_SHOT,
        PEERSUM_DTYPE_F16,
        PEERSUM_DTYPE_BF16,
        PEERSUM_DTYPE_F32,
        PEERSUM_DTYPE_U8,
        PEERSUM_DTYPE_I8,
        PEERSUM_DTYPE_U32,
        PEERSUM_DTYPE_I32,
        PEERSUM_DTYPE_U64,
        PEERSUM_DTYPE_I64,
        PEERSUM_SOURCE_ORDINARY,
        PEERSUM_SOURCE_SYMMETRIC,
        PEERSUM_PULL_PHASES,
        PEERSUM_PULL_PHASE_OPEN,
        PEERSUM_PULL_PHASE_SECOND,
        PEERSUM_CAUSE_NONE,
        PEERSUM_CAUSE_TIMEOUT,
        PEERSUM_CAUSE_ABORT,
        PEERSUM_CAUSE_POISON,
        PEERSUM_CAUSE_DISAGREEMENT,
    );
    facts
}

fn constants() -> Facts {
    let mut facts = enumerations();
    constants!(
        facts,
        PEERSUM_ABI_VERSION,
        PEERSUM_MAX_WORLD_SIZE,
        PEERSUM_MAX_BLOCKS,
        PEERSUM_MAX_THREADS,
        PEERSUM_MIN_THREADS,
        PEERSUM_WARP_THREADS,
        PEERSUM_UNIT_BYTES,
        PEERSUM_SLOT_GROUP,
        PEERSUM_SLOT_EMPTY,
        PEERSUM_SLOT_EMPTY_SUBSTITUTE,
        PEERSUM_HEADER_RING,
        PEERSUM_HEADER_SEQUENCE_SHIFT,
        PEERSUM_HEADER_OPERATION_SHIFT,
        PEERSUM_HEADER_SOURCE_SHIFT,
        PEERSUM_HEADER_FAMILY_SHIFT,
        PEERSUM_HEADER_ALGORITHM_SHIFT,
        PEERSUM_HEADER_DTYPE_SHIFT,
        PEERSUM_HEADER_ROOT_SHIFT,
        PEERSUM_HEADER_DTYPE_BITS,
        PEERSUM_HEADER_ROOT_BITS,
        PEERSUM_ROOT_MORE_PIECES_FOLLOW,
        PEERSUM_ROOT_FUSED,
        PEERSUM_HEADER_BYTES_BITS,
        PEERSUM_HEADER_OPERATION_BITS,
        PEERSUM_DETAIL_BUFFER_SHIFT,
        PEERSUM_DETAIL_BUFFER_BITS,
        PEERSUM_DETAIL_OFFSET_BITS,
        PEERSUM_MAX_HIDDEN,
        PEERSUM_MAX_ROW_UNITS_PER_THREAD,
        PEERSUM_KEPT_ROW_UNITS_OF_PAIR,
        PEERSUM_KEPT_ROW_UNITS,
        PEERSUM_MAX_CLUSTER_BLOCKS,
        PEERSUM_MAX_CLUSTER_THREADS,
        PEERSUM_MAX_CLUSTERED_THREADS,
        PEERSUM_NORM_OUTPUT_SHIFT,
        PEERSUM_NORM_OUTPUT_BITS,
        PEERSUM_NORM_OUTPUT_ROWS,
        PEERSUM_NORM_OUTPUT_FP8_STATIC,
        PEERSUM_NORM_OUTPUT_FP8_PER_TOKEN,
        PEERSUM_NORM_WORDS,
        PEERSUM_NORM_WORD_EPSILON,
        PEERSUM_NORM_WORD_OFFSET,
        PEERSUM_NORM_MARK_SHIFT,
        PEERSUM_NORM_VALUE_SHIFT,
        PEERSUM_OPERATION_ALL_REDUCE,
        PEERSUM_OPERATION_RMS_NORM,
        PEERSUM_OPERATION_ALL_GATHER,
        PEERSUM_OPERATION_REDUCE_SCATTER,
        PEERSUM_OPERATION_BROADCAST,
        PEERSUM_FLAG_SOURCE_ALIGNED,
        PEERSUM_FLAG_ONE_DEVICE,
    );
    facts
}

/// The values that the C compiler of this machine gives to the expressions, with the header
/// compiled as `language`.
fn compiled(language: &str, expressions: impl Iterator<Item = String>) -> Facts {
    let mut program = format!(
        "#include {:?}\n#include <stdio.h>\nint main(void) {{\n",
        header()
    );
    for expression in expressions {
        writeln!(
            program,
            "printf(\"%llu %s\\n\", (unsigned long long)({expression}), \"{expression}\");"
        )
        .unwrap();
    }
    program.push_str("return 0;\n}\n");

    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let source = directory.join(format!("abi_layout.{language}.txt"));
    let executable = directory.join(format!("abi_layout.{language}"));
    std::fs::write(&source, program).unwrap();
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let output = Command::new(&compiler)
        .args(["-x", language, "-o"])
        .args([&executable, &source])
        .output()
        .unwrap_or_else(|error| panic!("cannot start {compiler}: {error}"));
    assert!(
        output.status.success(),
        "{compiler}: {}",
        String::from_utf8_lossy(&output.stderr)
    );

    let output = Command::new(&executable).output().unwrap();
    let fact = |line: &str| {
        let (value, expression) = line.split_once(' ').unwrap();
        (expression.to_owned(), value.parse().unwrap())
    };
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(fact)
        .collect()
}

#[test]
fn sizes_offsets_and_constants_match_those_of_the_c_and_cpp_compilers() {
    let bindings = bindings();
    for language in ["c", "c++"] {
        assert_eq!(
            compiled(language, bindings.keys().cloned()),
            bindings,
            "{language}"
        );
    }
}

#[test]
fn no_constant_and_no_structure_of_the_header_is_left_out() {
    let text = std::fs::read_to_string(header()).unwrap();
    let defined: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("#define ")?.split_once(' '))
        .map(|(name, _)| name)
        .collect();
    let structures: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("typedef struct ")?.strip_suffix(" {"))
        .collect();
    assert!(
        defined.len() > 30 && structures.len() >= 4,
        "{defined:?} {structures:?}"
    );
    let bindings = bindings();
    for name in defined {
        assert!(bindings.contains_key(name), "{name} is not compared above");
    }
    for name in structures {
        assert!(
            bindings.contains_key(&format!("sizeof({name})")),
            "{name} is not compared above"
        );
    }
}
