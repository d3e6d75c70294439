//! Compiles the kernels for the CPU: one C++ file a module, made of the module's definitions and
//! the kernel file itself, and a table from entry point names to functions.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use peersum_artifact::{Dtype, Family, ModuleKey};

/// The protocols that are broken on purpose, by their number in `call.cuh`, and the families in
/// which tests call each one.
const BREAKS: [(u32, &[Family]); 9] = [
    (1, &[Family::Push, Family::Norm, Family::Move]),
    (2, &[Family::Pull]),
    (3, &[Family::Push, Family::Move]),
    (4, &[Family::Push, Family::Pull, Family::Norm, Family::Move]),
    (5, &[Family::Pull]),
    (6, &[Family::Push, Family::Pull]),
    (7, &[Family::Norm]),
    (8, &[Family::Norm]),
    (9, &[Family::Norm]),
];

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/cpp");

    let out = PathBuf::from(
        env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("cargo sets OUT_DIR"))?,
    );
    // The text that the runtime crate embeds, not files beside this package.
    let kernels = out.join("kernels");
    fs::create_dir_all(&kernels)?;
    for source in peersum_kernels::SOURCES {
        fs::write(kernels.join(source.path), source.text)?;
    }

    let modules: Vec<Module> = ModuleKey::all()
        .map(|key| Module { key, broken: None })
        .chain(broken_modules())
        .collect();
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        // No exception, no allocation: the C++ library is not needed.
        .cpp_link_stdlib(None)
        .flag("-fno-exceptions")
        .flag("-fno-rtti")
        // The kernels access memory as words and units, whatever type it holds.
        .flag("-fno-strict-aliasing")
        // A sum is rounded once for each addition.
        .flag("-ffp-contract=off")
        // A square root is one instruction and sets no errno.
        .flag("-fno-math-errno")
        .flag("-Wno-unknown-pragmas")
        .flag("-Wno-sign-compare")
        // Optimise debug builds too: tests should spend their time in the waits of the protocols,
        // not in slow code. More than this saves them less than it costs the build.
        .opt_level_str("g")
        .debug(false)
        .include(&kernels)
        .include("src/cpp")
        .file("src/cpp/runtime.cpp");
    for module in &modules {
        build.file(module.write_translation_unit(&out)?);
    }
    if !is_for_clippy() {
        build
            .try_compile("peersum_emulated_kernels")
            .map_err(io::Error::other)?;
    }

    fs::write(out.join("entry_points.rs"), entry_point_table(&modules))
}

/// Whether clippy asks: cargo keeps an `OUT_DIR` of its own for it, and nothing is linked with the
/// contents.
fn is_for_clippy() -> bool {
    let wrapper = env::var_os("RUSTC_WORKSPACE_WRAPPER").map(PathBuf::from);
    wrapper.is_some_and(|path| path.file_stem().is_some_and(|name| name == "clippy-driver"))
}

/// One module to compile.
struct Module {
    key: ModuleKey,
    broken: Option<u32>,
}

impl Module {
    /// A suffix for names that are otherwise the same in all variants of the module.
    fn suffix(&self) -> String {
        self.broken
            .map(|number| format!("_break_{number}"))
            .unwrap_or_default()
    }

    /// Writes the file that is compiled: `#define`s and two `#include`s.
    fn write_translation_unit(&self, directory: &Path) -> io::Result<PathBuf> {
        let module = format!("{}{}", self.key.name(), self.suffix());
        let of_module = self.key.defines().into_iter();
        let mut defines: Vec<String> = of_module.map(|it| it.replacen('=', " ", 1)).collect();
        // On a GPU each module is a separate program; here all are linked into one.
        let functions = peersum_kernels::exported_device_functions();
        defines.extend(functions.map(|function| format!("{function} {module}_{function}")));
        if let Some(number) = self.broken {
            defines.push(format!("PEERSUM_BREAK {number}"));
            let entry_points = self.key.entry_points().into_iter();
            defines.extend(entry_points.map(|name| format!("{name} {name}{}", self.suffix())));
        }
        let lines = defines.iter().map(|define| format!("#define {define}\n"));
        let mut text: String = lines.collect();
        text.push_str("#include \"platform_emulator.hpp\"\n");
        text.push_str(&format!("#include \"{}\"\n", self.key.source_root()));

        let path = directory.join(format!("{module}.cpp"));
        fs::write(&path, text)?;
        Ok(path)
    }
}

/// The negative controls, for the smallest even and odd group, and for the types that the tests
/// call. The calls that only move data have one module for all types, of `u8`.
fn broken_modules() -> Vec<Module> {
    if env::var_os("CARGO_FEATURE_BROKEN_KERNELS").is_none() {
        return Vec::new();
    }
    let keys = ModuleKey::all()
        .filter(|key| [2, 3].contains(&key.world_size.get()))
        .filter(|key| [Dtype::Bf16, Dtype::F32, Dtype::U8].contains(&key.dtype));
    let broken_in = |key: ModuleKey| {
        let breaks = BREAKS.iter();
        let here = breaks.filter(move |(_, families)| families.contains(&key.family));
        here.map(move |&(number, _)| Module {
            key,
            broken: Some(number),
        })
    };
    keys.flat_map(broken_in).collect()
}

fn entry_point_table(modules: &[Module]) -> String {
    let of_module = |module: &Module| {
        let suffix = module.suffix();
        let names = module.key.entry_points().into_iter();
        names.map(move |name| format!("{name}{suffix}"))
    };
    let names: Vec<String> = modules.iter().flat_map(of_module).collect();
    let declared = |name: &String| format!("    fn {name}(params: PeersumParams);\n");
    let entry = |name: &String| format!("    (\"{name}\", {name} as EntryPoint),\n");
    format!(
        "unsafe extern \"C\" {{\n{}}}\n\n/// Every entry point by its name.\n\
         pub(crate) static ENTRY_POINTS: [(&str, EntryPoint); {}] = [\n{}];\n",
        names.iter().map(declared).collect::<String>(),
        names.len(),
        names.iter().map(entry).collect::<String>()
    )
}
