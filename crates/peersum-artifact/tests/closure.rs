//! The include closure: complete, ordered, and never silently incomplete.

use peersum_artifact::{Closure, ClosureError, Digest, include_closure};

fn paths(closure: &Closure) -> Vec<&str> {
    closure
        .files
        .iter()
        .map(|(path, _)| path.as_str())
        .collect()
}

const SOURCES: &[(&str, &str)] = &[
    ("abi.h", "typedef int x;\n"),
    ("element.cuh", "#pragma once\n#include \"platform.cuh\"\n"),
    (
        "platform.cuh",
        "#pragma once\n#  include \"abi.h\" // constants\n",
    ),
    (
        "pull.cu",
        "\t#include\"element.cuh\"\r\n#include \"protocol.cuh\"\r\n",
    ),
    ("protocol.cuh", "#include \"platform.cuh\"\n"),
    ("push.cu", "#include \"element.cuh\"\n"),
];

#[test]
fn a_closure_holds_what_is_included_and_nothing_else() {
    assert_eq!(
        paths(&include_closure("push.cu", SOURCES).unwrap()),
        ["abi.h", "element.cuh", "platform.cuh", "push.cu"]
    );
    assert_eq!(
        paths(&include_closure("pull.cu", SOURCES).unwrap()),
        [
            "abi.h",
            "element.cuh",
            "platform.cuh",
            "protocol.cuh",
            "pull.cu"
        ]
    );
    assert_eq!(
        paths(&include_closure("abi.h", SOURCES).unwrap()),
        ["abi.h"]
    );
}

#[test]
fn neither_the_order_of_the_sources_nor_that_of_the_includes_of_others_matters() {
    let mut reversed = SOURCES.to_vec();
    reversed.reverse();
    let closure = include_closure("pull.cu", SOURCES).unwrap();
    assert_eq!(include_closure("pull.cu", &reversed).unwrap(), closure);
    assert!(closure.files.is_sorted());
}

#[test]
fn an_edit_changes_the_closures_that_hold_the_file_and_no_other() {
    let edited: Vec<(&str, &str)> = SOURCES
        .iter()
        .map(|&(path, text)| {
            (
                path,
                if path == "protocol.cuh" {
                    "#include \"platform.cuh\"\n\n"
                } else {
                    text
                },
            )
        })
        .collect();
    let digest = |root, sources: &[_]| include_closure(root, sources).unwrap().digest;
    assert_ne!(digest("pull.cu", &edited), digest("pull.cu", SOURCES));
    assert_eq!(digest("push.cu", &edited), digest("push.cu", SOURCES));
}

#[test]
fn a_renamed_file_of_equal_text_is_another_closure() {
    let digest = |included| {
        let root = "#include \"a.h\"\n#include \"b.h\"\n";
        include_closure("k.cu", &[("k.cu", root), ("a.h", included), ("b.h", "")])
            .unwrap()
            .digest
    };
    assert_ne!(digest(""), digest("\n"));
    let swapped = |a, b| {
        include_closure(
            "k.cu",
            &[
                ("k.cu", "#include \"a.h\"\n#include \"b.h\"\n"),
                ("a.h", a),
                ("b.h", b),
            ],
        )
        .unwrap()
        .digest
    };
    assert_ne!(swapped("1", "2"), swapped("2", "1"));
}

#[test]
fn cycles_and_self_inclusion_end() {
    let sources = [
        ("a.cuh", "#include \"b.cuh\"\n"),
        ("b.cuh", "#include \"a.cuh\"\n#include \"b.cuh\"\n"),
    ];
    assert_eq!(
        paths(&include_closure("a.cuh", &sources).unwrap()),
        ["a.cuh", "b.cuh"]
    );
}

#[test]
fn digests_are_those_of_the_texts() {
    let closure = include_closure("abi.h", SOURCES).unwrap();
    assert_eq!(
        closure.files,
        [("abi.h".to_owned(), Digest::of(b"typedef int x;\n"))]
    );
    // SHA-256 of the JSON of all pairs of path and digest; computed with Python's hashlib.
    assert_eq!(
        closure.digest.to_string(),
        "fc5ad117d46acc15d824f25d5ab0888a5e864b864c15273b751263dc94d45ba6"
    );
}

#[test]
fn a_missing_file_is_named_with_its_place() {
    let error = include_closure("k.cu", &[("k.cu", "\n#include \"gone.cuh\"\n")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "k.cu:2: includes `gone.cuh`, which is not among the kernels' sources (k.cu)"
    );
    assert!(matches!(
        include_closure("x.cu", SOURCES),
        Err(ClosureError::UnknownRoot { .. })
    ));
}

#[test]
fn paths_are_not_normalised_so_no_spelling_leads_out() {
    for spelling in ["../abi.h", "./abi.h", "/abi.h", "ABI.h", ""] {
        let text = format!("#include \"{spelling}\"\n");
        let sources = [("k.cu", text.as_str()), ("abi.h", "")];
        let error = include_closure("k.cu", &sources).unwrap_err().to_string();
        let complaint = format!("k.cu:1: includes `{spelling}`, which is not among");
        assert!(error.starts_with(&complaint), "{error}");
    }
}

#[test]
fn a_system_header_is_refused() {
    let error = include_closure("k.cu", &[("k.cu", "#include <cuda_fp16.h>")]).unwrap_err();
    let complaint = "k.cu:1: includes the system header <cuda_fp16.h>";
    assert!(error.to_string().starts_with(complaint), "{error}");
}

#[test]
fn a_directive_that_text_alone_cannot_resolve_is_refused() {
    for directive in [
        "#include HEADER",
        "#include",
        "#include \"abi.h",
        "#include <abi.h",
        "#include_next \"abi.h\"",
        "#import \"abi.h\"",
        "#include \\",
    ] {
        let sources = [("k.cu", directive), ("abi.h", "")];
        let error = include_closure("k.cu", &sources).unwrap_err().to_string();
        let complaint = format!("k.cu:1: `{directive}` is not of the form");
        assert!(error.starts_with(&complaint), "{error}");
    }
}

#[test]
fn what_is_no_directive_is_ignored() {
    let text = "// #include \"gone\"\nconst char *s = \"#include\";\n#define X include\n\
                #pragma once\n#if 0\n#endif\n";
    assert_eq!(
        paths(&include_closure("k.cu", &[("k.cu", text)]).unwrap()),
        ["k.cu"]
    );
}
