//! The cache key: each input changes it, and adjacent inputs cannot be confused.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up fails")]

use std::collections::BTreeMap;

use peersum_artifact::{
    CacheKeyInputs, Closure, CompilerId, CompilerKind, Digest, Dtype, Family, ModuleKey, Target,
    WorldSize, cache_key, include_closure,
};

mod support;
use support::{compiler, key, target};

/// What is changed, and how.
type Change = (&'static str, fn(&mut Inputs));

/// Owned inputs, so that a test can change one.
#[derive(Clone)]
struct Inputs {
    module: ModuleKey,
    target: Target,
    closure: Closure,
    prelude: Option<Digest>,
    flags: Vec<String>,
    defines: Vec<String>,
    compiler: CompilerId,
    entry_points: Vec<String>,
}

impl Inputs {
    fn sample() -> Inputs {
        let module = key(Family::Push);
        Inputs {
            module,
            target: target("sm_90"),
            closure: include_closure(
                "push.cu",
                &[("push.cu", "#include \"abi.h\"\n"), ("abi.h", "\n")],
            )
            .unwrap(),
            prelude: Some(Digest::of(b"prelude")),
            flags: texts(&["-std=c++17", "-O3"]),
            defines: module.defines(),
            compiler: compiler(),
            entry_points: module.entry_points().to_vec(),
        }
    }

    fn key(&self) -> Digest {
        cache_key(&CacheKeyInputs {
            module: self.module,
            target: self.target,
            closure: &self.closure,
            prelude: self.prelude,
            flags: &self.flags,
            defines: &self.defines,
            compiler: &self.compiler,
            entry_points: &self.entry_points,
        })
    }
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn each_input_changes_the_key() {
    let changes: &[Change] = &[
        ("nothing", |_| {}),
        ("family", |inputs| inputs.module.family = Family::Pull),
        ("dtype", |inputs| inputs.module.dtype = Dtype::F16),
        ("world size", |inputs| {
            inputs.module.world_size = WorldSize::MIN
        }),
        ("architecture", |inputs| inputs.target = target("sm_80")),
        ("kind", |inputs| inputs.target = target("compute_90")),
        ("a file's text", |inputs| {
            inputs.closure.files[0].1 = Digest::of(b"edited")
        }),
        ("a file's path", |inputs| {
            inputs.closure.files[0].0.push('h')
        }),
        ("a file more", |inputs| {
            inputs
                .closure
                .files
                .push(("z.cuh".to_owned(), Digest::of(b"")))
        }),
        ("a file less", |inputs| drop(inputs.closure.files.pop())),
        ("the prelude's text", |inputs| {
            inputs.prelude = Some(Digest::of(b"edited"))
        }),
        ("no prelude", |inputs| inputs.prelude = None),
        ("a flag more", |inputs| inputs.flags.push("-G".to_owned())),
        ("the flags' order", |inputs| inputs.flags.reverse()),
        ("a definition's value", |inputs| inputs.defines[0].push('x')),
        ("the definitions' order", |inputs| inputs.defines.reverse()),
        ("compiler kind", |inputs| {
            inputs.compiler.kind = CompilerKind::Nvrtc
        }),
        ("compiler version", |inputs| {
            inputs.compiler.version = "13.0.89".to_owned()
        }),
        ("compiler build", |inputs| inputs.compiler.build.push('1')),
        ("an entry point", |inputs| inputs.entry_points[1].push('x')),
    ];
    let mut seen = BTreeMap::new();
    for (what, change) in changes {
        let mut inputs = Inputs::sample();
        change(&mut inputs);
        if let Some(other) = seen.insert(inputs.key(), what) {
            panic!("changing {what} gives the same key as changing {other}");
        }
    }
}

#[test]
fn text_cannot_move_from_one_field_to_the_next() {
    let with_flags = |flags: &[&str], defines: &[&str]| {
        Inputs {
            flags: texts(flags),
            defines: texts(defines),
            ..Inputs::sample()
        }
        .key()
    };
    assert_ne!(with_flags(&["ab", "c"], &[]), with_flags(&["a", "bc"], &[]));
    assert_ne!(with_flags(&["ab"], &[]), with_flags(&["a", "b"], &[]));
    assert_ne!(with_flags(&["a"], &[]), with_flags(&[], &["a"]));
    assert_ne!(with_flags(&["a", ""], &[]), with_flags(&["a"], &[""]));
    assert_ne!(with_flags(&["a\0b"], &[]), with_flags(&["a", "b"], &[]));
    let with_compiler = |version: &str, build: &str| {
        let compiler = CompilerId {
            kind: CompilerKind::Nvcc,
            version: version.to_owned(),
            build: build.to_owned(),
        };
        Inputs {
            compiler,
            ..Inputs::sample()
        }
        .key()
    };
    assert_ne!(with_compiler("13.0", ".1"), with_compiler("13.0.", "1"));
}

#[test]
fn the_key_depends_on_its_inputs_alone() {
    // A fixed value, the same on every machine and day: it shows that no time, path, host compiler
    // or hash seed enters. Computed with Python's hashlib from the JSON. If it changes, raise
    // CACHE_KEY_SCHEMA.
    assert_eq!(
        Inputs::sample().key().to_string(),
        "2f23f45ca7b971a67c88d6aa711b2c3ad471dd5060255fda237fb3966a7ab191"
    );
}

#[test]
fn a_compilers_toolkit_is_the_release_its_version_begins_with() {
    let toolkit = |version: &str| {
        CompilerId {
            version: version.to_owned(),
            ..compiler()
        }
        .toolkit()
    };
    assert_eq!(
        toolkit("13.0.88")
            .map(|release| release.to_string())
            .as_deref(),
        Some("13.0")
    );
    assert_eq!(
        toolkit("12.9")
            .map(|release| release.to_string())
            .as_deref(),
        Some("12.9")
    );
    assert_eq!(toolkit("unknown"), None);
    assert_eq!(toolkit("13"), None);
}
