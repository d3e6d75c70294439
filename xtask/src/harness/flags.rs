//! The harness's flags as they were typed. xtask reads the few that decide what to compile.

use anyhow::ensure;
use std::path::Path;

#[derive(Debug, Clone)]
pub(super) struct Flags(pub(super) Vec<String>);

impl Flags {
    fn position(&self, name: &str) -> Option<usize> {
        let is_it = |flag: &String| flag.split('=').next() == Some(name);
        self.0.iter().position(is_it)
    }

    /// Whether a flag is given.
    pub(super) fn has(&self, name: &str) -> bool {
        self.position(name).is_some()
    }

    /// The value of a flag, if both are given.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        let at = self.position(name)?;
        match self.0[at].split_once('=') {
            Some((_, value)) => Some(value),
            None => self.0.get(at + 1).map(String::as_str),
        }
    }

    /// Takes a flag of xtask's own out, with its value.
    pub(super) fn take(&mut self, name: &str) -> anyhow::Result<Option<String>> {
        let Some(at) = self.position(name) else {
            return Ok(None);
        };
        let flag = self.0.remove(at);
        if let Some((_, value)) = flag.split_once('=') {
            return Ok(Some(value.to_owned()));
        }
        ensure!(at < self.0.len(), "{name} needs a value");
        Ok(Some(self.0.remove(at)))
    }

    /// Whether a flag that may do without a value is given without one.
    pub(super) fn is_bare(&self, name: &str) -> bool {
        let at = self.0.iter().position(|flag| flag == name);
        at.is_some_and(|at| self.0.get(at + 1).is_none_or(|next| next.starts_with('-')))
    }

    /// Gives a flag the path as its value; one that was given without a value is replaced.
    pub(super) fn set(&mut self, name: &str, path: &Path) {
        self.0.retain(|flag| flag != name);
        self.0.push(format!("{name}={}", path.display()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(text: &str) -> Flags {
        Flags(text.split_whitespace().map(str::to_owned).collect())
    }

    #[test]
    fn a_flag_for_this_program_is_taken_out_with_its_value() {
        let mut given = flags("--dtype bf16 --compile-for sm_90,sm_100 --replays 3");
        let taken = given.take("--compile-for").unwrap();
        assert_eq!(taken.as_deref(), Some("sm_90,sm_100"));
        assert_eq!(given.0, flags("--dtype bf16 --replays 3").0);
        assert_eq!(given.take("--compile-for").unwrap(), None);
        let joined = flags("--compile-for=sm_80").take("--compile-for").unwrap();
        assert_eq!(joined.as_deref(), Some("sm_80"));
        assert!(flags("--compile-for").take("--compile-for").is_err());
    }

    #[test]
    fn a_build_is_compiled_here_only_where_no_directory_is_given() {
        for text in ["--unsafe-baseline", "--unsafe-baseline --pdl on"] {
            let mut given = flags(text);
            assert!(given.is_bare("--unsafe-baseline"), "{text}");
            given.set("--unsafe-baseline", Path::new("made"));
            assert_eq!(given.value("--unsafe-baseline"), Some("made"));
            assert!(!given.is_bare("--unsafe-baseline"), "{text}");
        }
        for text in [
            "--unsafe-baseline somewhere",
            "--unsafe-baseline=somewhere",
            "--pdl on",
        ] {
            assert!(!flags(text).is_bare("--unsafe-baseline"), "{text}");
        }
    }
}
