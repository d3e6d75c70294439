//! The nvcc commands that compile a module, and how they are shown to people.

use super::inputs::Inputs;
use crate::toolchain::{HIDDEN_FLAG_VARIABLES, Nvcc, escaped};
use peersum_artifact::{ModuleKey, Target};
use std::path::Path;
use std::process::Command;

/// The command that makes a target of a module from its source, to be run in `directory`.
///
/// # Errors
/// The current directory is gone.
pub(crate) fn nvcc_command(
    nvcc: &Nvcc,
    inputs: &Inputs,
    module: ModuleKey,
    target: Target,
    directory: &Path,
) -> anyhow::Result<Command> {
    let mut command = nvcc.command(directory)?;
    command
        .args([format!("-{}", target.kind()), format!("-arch={target}")])
        .args(&inputs.flags);
    if let Some(prelude) = &inputs.prelude {
        // First on the include path, so that nvcc's implicit include finds it.
        command.arg("-I").arg(escaped(&prelude.dir));
    }
    let defines = module.defines().into_iter();
    command
        .args(defines.map(|define| format!("-D{define}")))
        // It keeps the PTX, which is read afterwards; nvcc writes it to a file anyway.
        .args(["--keep", "-o", &target.file_name(&module)])
        .arg(escaped(&inputs.kernels_dir.join(module.source_root())));
    Ok(command)
}

/// The command that makes a cubin of a module from its PTX, to be run in `directory`.
///
/// # Errors
/// The current directory is gone.
pub(crate) fn assemble_command(
    nvcc: &Nvcc,
    inputs: &Inputs,
    module: ModuleKey,
    ptx: &Path,
    target: Target,
    directory: &Path,
) -> anyhow::Result<Command> {
    let mut command = nvcc.command(directory)?;
    command
        .args(["-cubin", &format!("-arch={target}")])
        .args(&inputs.flags)
        .args(["-o", &target.file_name(&module)])
        .arg(escaped(ptx));
    Ok(command)
}

/// The command as it can be pasted into a shell.
pub(super) fn shown(command: &Command) -> String {
    let mut words = Vec::new();
    let set = |variable: &&&str| std::env::var_os(variable).is_some();
    for variable in HIDDEN_FLAG_VARIABLES.iter().filter(set) {
        if words.is_empty() {
            words.push("env".to_owned());
        }
        words.extend(["-u".to_owned(), (*variable).to_owned()]);
    }
    words.push(quoted(&command.get_program().to_string_lossy()));
    words.extend(command.get_args().map(|arg| quoted(&arg.to_string_lossy())));
    words.join(" ")
}

/// A word as a POSIX shell reads it back.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=./+:,@%".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_command_survives_being_pasted_into_a_shell() {
        let words = ["nvcc", "-DX=a b", "it's", "$HOME", "", "-I/a/path", "\"q\""];
        let line = words.map(quoted).join(" ");
        let script = format!("printf '%s\\n' {line}");
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert_eq!(printed.lines().collect::<Vec<_>>(), words);
    }
}
