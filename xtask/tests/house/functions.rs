//! The functions of a file that a formatter has laid out: a function ends at the first `}` that is
//! indented as its first line is.

use std::fmt;

use crate::sources::Source;

pub(crate) struct Function {
    path: String,
    line: usize,
    pub(crate) lines: usize,
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}, {} lines", self.path, self.line, self.lines)
    }
}

pub(crate) fn of(source: &Source) -> Vec<Function> {
    let lines: Vec<&str> = source.lines().collect();
    let mut functions = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let begins = if source.is_rust() {
            begins_in_rust(line)
        } else {
            begins_in_cpp(line)
        };
        let indent = &line[..line.len() - line.trim_start().len()];
        let end = format!("{indent}}}");
        let ends = |line: &&str| **line == end || is_one_line(line, indent);
        if !begins || is_one_line(line, indent) {
            continue;
        }
        if let Some(count) = lines[index..].iter().position(ends) {
            functions.push(Function {
                path: source.path.clone(),
                line: index + 1,
                lines: count + 1,
            });
        }
    }
    functions
}

fn begins_in_rust(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().take(6).collect();
    words
        .iter()
        .position(|word| *word == "fn")
        .is_some_and(|at| {
            let qualifiers = ["const", "async", "unsafe", "extern", "\"C\""];
            words[..at]
                .iter()
                .all(|word| word.starts_with("pub") || qualifiers.contains(word))
        })
}

/// At the left margin, which is where clang-format puts a function of a namespace.
fn begins_in_cpp(line: &str) -> bool {
    let begins = line.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    begins && line.contains('(') && !line.ends_with(';') && !line.starts_with("namespace")
}

/// A declaration, or a function whose body stands on its line.
fn is_one_line(line: &str, indent: &str) -> bool {
    let is_at_indent = line.starts_with(indent) && !line[indent.len()..].starts_with(' ');
    is_at_indent && (line.ends_with(';') || line.ends_with('}') && line.contains('{'))
}
