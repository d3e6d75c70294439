//! Manifest schema 2 is read strictly, and every refusal names the place and what is wrong.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up fails")]

use peersum_artifact::{Digest, Manifest, SchemaError};
use serde_json::{Value, json};

mod support;
use support::sample_manifest;

fn sample() -> Value {
    serde_json::from_str(&sample_manifest().to_json_string()).unwrap()
}

/// Parses the sample with the value at a JSON pointer replaced.
fn parse_with(pointer: &str, value: Value) -> Result<Manifest, SchemaError> {
    let mut manifest = sample();
    let place = manifest
        .pointer_mut(pointer)
        .unwrap_or_else(|| panic!("no {pointer}"));
    *place = value;
    Manifest::parse(&manifest.to_string())
}

/// The refusal of the sample with the value at a JSON pointer replaced: its place and its problem.
#[track_caller]
fn refused_with(pointer: &str, value: Value) -> (String, String) {
    place_and_problem(parse_with(pointer, value))
}

/// The refusal's place and problem, both of which its message says, and what to do.
#[track_caller]
fn place_and_problem(result: Result<Manifest, SchemaError>) -> (String, String) {
    let error = result.unwrap_err();
    let message = error.to_string();
    let SchemaError::Invalid { place, problem } = error else {
        panic!("{error:?}");
    };
    assert!(
        message.contains(&place) && message.contains(&problem),
        "{message}"
    );
    assert!(message.contains("precompile again"), "{message}");
    (place, problem)
}

/// Whether an error's place and problem name the field at a JSON pointer: by the place itself, or
/// as a field of the object at that place.
fn names_field(place: &str, problem: &str, pointer: &str) -> bool {
    let field = as_written(pointer);
    place == field
        || field
            .strip_prefix(place.trim_start_matches('.'))
            .map(|rest| rest.trim_start_matches('.'))
            .is_some_and(|rest| problem.contains(&format!("`{rest}`")))
}

/// The JSON pointers of every field of every object in `value`.
fn fields(value: &Value, place: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                let field = format!("{place}/{name}");
                fields(value, &field, found);
                found.push(field);
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                fields(value, &format!("{place}/{index}"), found);
            }
        }
        _ => {}
    }
}

/// A JSON pointer as errors write it: `/modules/0/sha256` is `modules[0].sha256`.
fn as_written(pointer: &str) -> String {
    pointer
        .trim_start_matches('/')
        .split('/')
        .fold(String::new(), |place, part| match part.parse::<usize>() {
            Ok(index) => format!("{place}[{index}]"),
            Err(_) if place.is_empty() => part.to_owned(),
            Err(_) => format!("{place}.{part}"),
        })
}

#[test]
fn each_missing_field_is_named() {
    let mut all = Vec::new();
    fields(&sample(), "", &mut all);
    assert!(all.len() >= 50, "{}", all.len());
    for pointer in all {
        let mut edited = sample();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        edited
            .pointer_mut(parent)
            .unwrap()
            .as_object_mut()
            .unwrap()
            .remove(name)
            .unwrap();
        let (place, problem) = place_and_problem(Manifest::parse(&edited.to_string()));
        assert!(
            problem.contains("missing field") && names_field(&place, &problem, &pointer),
            "without {pointer}: {place}: {problem}"
        );
    }
}

#[test]
fn each_field_of_another_type_is_named() {
    let mut all = Vec::new();
    fields(&sample(), "", &mut all);
    for pointer in all {
        let (place, problem) = refused_with(&pointer, Value::Null);
        assert!(
            names_field(&place, &problem, &pointer),
            "{pointer} as null: {place}: {problem}"
        );
    }
    for (pointer, value) in [
        ("/modules/0/bytes", json!(-1)),
        ("/modules/0/bytes", json!(1.5)),
        ("/modules/0/bytes", json!("6024")),
        ("/schema", json!("2")),
        ("/flags/0", json!(3)),
        ("/modules/0", json!([])),
    ] {
        let (place, problem) = refused_with(pointer, value);
        assert_eq!(place, as_written(pointer), "{problem}");
        assert!(problem.contains("expected"), "{problem}");
    }
    let (place, problem) = place_and_problem(Manifest::parse("[]"));
    assert_eq!(place, ".");
    assert!(problem.contains("an object"), "{problem}");
}

#[test]
fn a_newer_schema_asks_to_update_before_anything_else_is_looked_at() {
    let error = Manifest::parse(r#"{"schema": 3, "modules": "in another form"}"#).unwrap_err();
    assert!(
        matches!(error, SchemaError::NewerSchema { found: 3 }),
        "{error}"
    );
    assert!(error.to_string().contains("update peersum"), "{error}");
    assert!(matches!(
        parse_with("/schema", json!(0)),
        Err(SchemaError::UnknownSchema { found: 0 })
    ));
}

#[test]
fn a_file_outside_the_directory_is_refused() {
    for escape in [
        "/etc/passwd",
        "../peersum_push_bf16_ws8.sm_90.cubin",
        "..",
        ".",
        "",
        "sub/peersum_push_bf16_ws8.sm_90.cubin",
        "sub\\peersum_push_bf16_ws8.sm_90.cubin",
        "peersum_push_bf16_ws8.sm_90.cubin\0",
    ] {
        let (place, problem) = refused_with("/modules/1/file", json!(escape));
        assert_eq!(place, "modules[1]");
        let found = format!("`file`: `{}` leads out", escape.escape_debug());
        assert!(problem.contains(&found), "{problem}");
    }
    for escape in [
        "/abs.h",
        "../abi.h",
        "a/../../abi.h",
        "..",
        "",
        "./abi.h",
        "a\\b.h",
        "abi.h\0",
    ] {
        let (place, problem) = refused_with("/sources/0/path", json!(escape));
        assert_eq!(place, "sources[0].path");
        assert!(problem.contains("leads out"), "{problem}");
    }
    assert!(parse_with("/sources/0/path", json!("sub/abi.h")).is_ok());
}

#[test]
fn names_and_files_must_be_those_of_the_key() {
    for (pointer, value) in [
        ("/modules/1/name", "peersum_pull_bf16_ws8"),
        ("/modules/1/file", "peersum_push_bf16_ws8.sm_80.cubin"),
        ("/modules/1/file", "peersum_pull_bf16_ws8.sm_90.cubin"),
        ("/modules/1/kind", "ptx"),
        ("/modules/0/kind", "cubin"),
        (
            "/modules/1/entry_points/0/name",
            "peersum_pull_one_shot_bf16_ws8",
        ),
        (
            "/modules/1/entry_points/1/name",
            "peersum_push_one_shot_bf16_ws8",
        ),
    ] {
        let (place, problem) = refused_with(pointer, json!(value));
        assert!(names_field(&place, &problem, pointer), "{place}: {problem}");
        assert!(
            problem.contains(&format!("is `{value}`, but must be")),
            "{problem}"
        );
    }
    for (pointer, value) in [
        ("/modules/1/family", json!("pull")),
        ("/modules/1/world_size", json!(7)),
    ] {
        let (place, problem) = refused_with(pointer, value);
        assert_eq!(place, "modules[1]");
        assert!(problem.contains("but must be"), "{problem}");
    }
    for count in [0, 2, 4] {
        let entry_points = vec![sample()["modules"][1]["entry_points"][0].clone(); count];
        let (place, problem) = refused_with("/modules/1/entry_points", json!(entry_points));
        assert_eq!(place, "modules[1]");
        assert!(problem.contains("but must have 3"), "{problem}");
    }
}

#[test]
fn a_value_outside_its_set_is_refused_with_the_valid_ones() {
    for (pointer, value, valid) in [
        ("/modules/0/family", json!("shove"), "push, pull"),
        ("/modules/0/dtype", json!("fp8"), "f16, bf16, f32"),
        ("/modules/0/world_size", json!(9), "1 to 8"),
        ("/modules/0/world_size", json!(1_u64 << 32 | 8), "1 to 8"),
        ("/modules/0/arch", json!("90"), "sm_80"),
        ("/modules/0/arch", json!("sm_75"), "sm_80 and newer"),
        ("/modules/0/ptx_version", json!("9"), "9.0"),
        ("/toolkit/compiler", json!("clang"), "nvcc, nvrtc"),
    ] {
        let (place, problem) = refused_with(pointer, value);
        assert_eq!(place, as_written(pointer));
        assert!(problem.contains(valid), "{problem}");
    }
}

#[test]
fn a_digest_of_another_length_or_alphabet_is_refused() {
    let good = Digest::of(b"").to_string();
    for field in ["sha256", "closure_digest", "key"] {
        for bad in [
            &good[1..],
            &format!("{good}0"),
            &good.to_uppercase(),
            &good.replacen('e', "z", 1),
            "",
        ] {
            let (place, problem) = refused_with(&format!("/modules/0/{field}"), json!(bad));
            assert_eq!(place, format!("modules[0].{field}"));
            assert!(problem.contains("unknown digest"), "{problem}");
        }
    }
    let (place, _) = refused_with("/sources/0/sha256", json!("00"));
    assert_eq!(place, "sources[0].sha256");
}

#[test]
fn a_length_beyond_any_real_module_is_refused() {
    for bytes in [(64 << 20) + 1, u64::MAX] {
        let (place, problem) = refused_with("/modules/0/bytes", json!(bytes));
        assert_eq!(place, "modules[0]");
        assert!(
            problem.contains(&format!("`bytes` is {bytes}")),
            "{problem}"
        );
    }
    assert!(parse_with("/modules/0/bytes", json!(64 << 20)).is_ok());
    let registers = "/modules/1/entry_points/0/registers";
    let (place, problem) = refused_with(registers, json!(1_u64 << 32));
    assert_eq!(place, as_written(registers));
    assert!(problem.contains("4294967296"), "{problem}");
}

#[test]
fn a_second_entry_for_a_module_or_a_source_is_refused() {
    let doubled = |list: &str| {
        let mut edited = sample();
        let entries = edited[list].as_array_mut().unwrap();
        entries.push(entries[0].clone());
        Manifest::parse(&edited.to_string())
            .unwrap_err()
            .to_string()
    };
    assert!(doubled("modules").contains("two entries for `peersum_push_bf16_ws8.compute_80.ptx`"));
    assert!(doubled("sources").contains("two entries for the source `abi.h`"));
}

#[test]
fn a_field_that_is_given_twice_is_refused_even_with_one_value() {
    let whole = sample_manifest().to_json_string();
    for field in [
        "schema",
        "toolkit",
        "version",
        "modules",
        "file",
        "sha256",
        "registers",
    ] {
        let name = format!("\"{field}\":");
        let (before, behind) = whole.split_once(&name).unwrap();
        let value = match field {
            "modules" => "[]".to_owned(),
            "toolkit" => behind[..=behind.find('}').unwrap()].to_owned(),
            _ => behind[..behind.find([',', '\n']).unwrap()].to_owned(),
        };
        let twice = format!("{before}{name}{value},{name}{behind}");
        let (_, problem) = place_and_problem(Manifest::parse(&twice));
        assert!(
            problem.contains(&format!("duplicate field `{field}`")),
            "{problem}"
        );
    }
}

#[test]
fn a_text_of_more_values_than_any_matrix_has_is_refused_as_it_is_read() {
    let list = format!("{{\"schema\": 2, \"flags\": [{}0]}}", "0,".repeat(1 << 17));
    let error = Manifest::parse(&list).unwrap_err();
    assert!(error.to_string().contains("131072 values"), "{error}");
}

#[test]
fn what_is_no_json_is_refused() {
    for text in ["", "{", "not json", "{\"schema\": 2}garbage"] {
        assert!(
            matches!(Manifest::parse(text), Err(SchemaError::Json(_))),
            "{text}"
        );
    }
    // Deep nesting ends in an error, not in an overflow of the stack.
    for start in ["", "{\"schema\": 2, \"flags\": "] {
        assert!(matches!(
            Manifest::parse(&(start.to_owned() + &"[".repeat(1 << 20))),
            Err(SchemaError::Json(_))
        ));
    }
    let closed = "[".repeat(1 << 20) + &"]".repeat(1 << 20);
    for field in ["flags", "later"] {
        let text = format!("{{\"schema\": 2, \"{field}\": {closed}}}");
        assert!(Manifest::parse(&text).is_err());
    }
    let whole = sample_manifest().to_json_string();
    for length in (0..whole.trim_end().len()).step_by(7) {
        assert!(
            Manifest::parse(&whole[..length]).is_err(),
            "its first {length} bytes"
        );
    }
}
