//! Release notes: a version's section of CHANGELOG.md.

use anyhow::{Context as _, ensure};

/// The section `## {version}`, without its heading.
///
/// # Errors
/// There is none, or it is empty.
pub(super) fn of_version(changelog: &str, version: &str) -> anyhow::Result<String> {
    let is_heading_of_it = |line: &&str| {
        line.strip_prefix("## ")
            .and_then(|heading| heading.split_whitespace().next())
            .is_some_and(|word| word.trim_matches(['[', ']']) == version)
    };
    let mut lines = changelog.lines().skip_while(|line| !is_heading_of_it(line));
    lines
        .next()
        .with_context(|| format!("CHANGELOG.md has no section `## {version}`: write one"))?;
    let section: Vec<&str> = lines.take_while(|line| !line.starts_with("## ")).collect();
    let text = section.join("\n");
    ensure!(
        !text.trim().is_empty(),
        "the section `## {version}` of CHANGELOG.md is empty: say what is new"
    );
    Ok(format!("# peersum {version}\n\n{}\n", text.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGELOG: &str = "# Changelog\n\n## 0.2.0 (unreleased)\n\n- New.\n\n\
                             ### Fixes\n\n- A fix.\n\n\
                             ## [0.1.0] 2026-01-01\n\n- Old.\n\n## 0.0.1\n\n";

    #[test]
    fn the_section_of_the_version_is_taken_whole_and_no_other() {
        assert_eq!(
            of_version(CHANGELOG, "0.2.0").unwrap(),
            "# peersum 0.2.0\n\n- New.\n\n### Fixes\n\n- A fix.\n"
        );
        assert_eq!(
            of_version(CHANGELOG, "0.1.0").unwrap(),
            "# peersum 0.1.0\n\n- Old.\n"
        );
    }

    #[test]
    fn a_version_that_the_changelog_does_not_describe_is_an_error_that_names_it() {
        for (version, word) in [
            ("0.3.0", "no section"),
            ("0.2", "no section"),
            ("0.0.1", "empty"),
        ] {
            let error = of_version(CHANGELOG, version).unwrap_err().to_string();
            assert!(error.contains(version) && error.contains(word), "{error}");
        }
    }
}
