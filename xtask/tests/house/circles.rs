//! Which file uses which, by `use` declarations and paths, and the circles in that.
//!
//! A path leads to the file that defines its item, through re-exports. A `mod` declaration and a
//! re-export alone are no uses.

use std::collections::{BTreeMap, BTreeSet};

use crate::sources::Source;

/// Each circle as the paths of its files.
pub(crate) fn of(sources: &[Source]) -> Vec<String> {
    let mut circles = Vec::new();
    let roots: BTreeSet<&str> = sources
        .iter()
        .filter_map(|source| crate_root(source))
        .collect();
    for root in roots {
        let house = House::new(root, sources);
        let uses: Vec<BTreeSet<usize>> = (0..house.files.len()).map(|at| house.uses(at)).collect();
        for circle in strongly_connected(&uses) {
            let paths: Vec<&str> = circle.iter().map(|at| house.files[*at].path).collect();
            circles.push(paths.join(", "));
        }
    }
    circles
}

/// `crates/x/src/` of a file of the library or program in it.
fn crate_root(source: &Source) -> Option<&str> {
    let end = source.path.find("/src/")? + "/src/".len();
    (source.is_rust() && !source.is_test()).then(|| &source.path[..end])
}

type Path = Vec<String>;

struct File<'a> {
    path: &'a str,
    /// Its module, from the root of the crate.
    module: Path,
    /// What it defines at its top level.
    items: BTreeSet<String>,
    /// What it imports or re-exports: the name here, and the path as written.
    imports: BTreeMap<String, Path>,
    /// All paths in it but those of re-exports, as written.
    paths: BTreeSet<Path>,
}

struct House<'a> {
    files: Vec<File<'a>>,
    modules: BTreeMap<Path, usize>,
}

impl<'a> House<'a> {
    fn new(root: &str, sources: &'a [Source]) -> House<'a> {
        let in_crate = |source: &&Source| crate_root(source) == Some(root);
        let files: Vec<File> = sources
            .iter()
            .filter(in_crate)
            .map(|it| read(root, it))
            .collect();
        let modules = files
            .iter()
            .enumerate()
            .map(|(at, it)| (it.module.clone(), at))
            .collect();
        House { files, modules }
    }

    /// The files that a file uses.
    fn uses(&self, at: usize) -> BTreeSet<usize> {
        let file = &self.files[at];
        let found = file
            .paths
            .iter()
            .filter_map(|path| self.resolve(at, path, 0));
        found.filter(|other| *other != at).collect()
    }

    /// The file that defines what `path`, as written in file `at`, leads to.
    fn resolve(&self, at: usize, path: &[String], depth: usize) -> Option<usize> {
        // Two imports can name each other.
        if depth > 16 {
            return None;
        }
        let file = &self.files[at];
        let mut module = file.module.clone();
        let mut rest = path;
        match path.first()?.as_str() {
            "crate" => (module, rest) = (Vec::new(), &path[1..]),
            "self" => rest = &path[1..],
            // Of a module within the file.
            "super" if path.get(1).is_some_and(|name| file.items.contains(name)) => {
                return Some(at);
            }
            "super" => {}
            first => {
                let child: Path = module.iter().cloned().chain([first.to_owned()]).collect();
                if !self.modules.contains_key(&child) {
                    let imported = file.imports.get(first)?;
                    if imported == path {
                        return None;
                    }
                    let whole: Path = imported.iter().chain(&path[1..]).cloned().collect();
                    return self.resolve(at, &whole, depth + 1);
                }
            }
        }
        while rest.first().is_some_and(|name| name == "super") {
            module.pop();
            rest = &rest[1..];
        }
        for (index, name) in rest.iter().enumerate() {
            let child: Path = module.iter().cloned().chain([name.clone()]).collect();
            if self.modules.contains_key(&child) {
                module = child;
                continue;
            }
            let here = *self.modules.get(&module)?;
            let holder = &self.files[here];
            if here != at && !holder.items.contains(name) && holder.imports.contains_key(name) {
                return self.resolve(here, &rest[index..], depth + 1);
            }
            return Some(here);
        }
        self.modules.get(&module).copied()
    }
}

fn read<'a>(root: &str, source: &'a Source) -> File<'a> {
    let relative = source.path[root.len()..].trim_end_matches(".rs");
    let mut module: Path = relative.split('/').map(str::to_owned).collect();
    if module
        .last()
        .is_some_and(|name| ["mod", "lib", "main"].contains(&name.as_str()))
    {
        module.pop();
    }
    let text = without_comments_and_strings(source.without_unit_tests());
    let mut file = File {
        path: &source.path,
        module,
        items: BTreeSet::new(),
        imports: BTreeMap::new(),
        paths: BTreeSet::new(),
    };
    for line in text.lines() {
        file.items.extend(defined_item(line));
    }
    let mut others = String::new();
    let mut is_exported = false;
    for (index, statement) in text.split("use ").enumerate() {
        let rest = match statement.split_once(';') {
            Some((tree, rest)) if index > 0 => {
                let mut imports = BTreeMap::new();
                read_use_tree(&mut Vec::new(), tree, &mut imports);
                if !is_exported {
                    file.paths.extend(imports.values().cloned());
                }
                file.imports.extend(imports);
                rest
            }
            _ => statement,
        };
        let line = rest.rsplit('\n').next().unwrap_or_default();
        is_exported = line.trim_start().starts_with("pub");
        others.push_str(rest);
    }
    file.paths.extend(paths_in(&others));
    file
}

/// The name that a line at the left margin defines.
fn defined_item(line: &str) -> Option<String> {
    let kinds = [
        "fn",
        "struct",
        "enum",
        "trait",
        "const",
        "static",
        "type",
        "union",
        "macro_rules!",
    ];
    let mut words = line.split_whitespace();
    if line.starts_with(' ') || !words.any(|word| kinds.contains(&word)) {
        return None;
    }
    let name: String = words
        .next()?
        .chars()
        .take_while(|it| it.is_alphanumeric() || *it == '_')
        .collect();
    (!name.is_empty()).then_some(name)
}

/// Adds what a `use` tree imports, each under the name that it has here.
fn read_use_tree(prefix: &mut Path, tree: &str, imports: &mut BTreeMap<String, Path>) {
    let tree = tree.trim();
    if let Some((head, group)) = tree.split_once('{') {
        let depth = prefix.len();
        prefix.extend(
            head.split("::")
                .map(str::trim)
                .filter(|it| !it.is_empty())
                .map(str::to_owned),
        );
        let group = group.strip_suffix('}').unwrap_or(group);
        let (mut level, mut begin) = (0, 0);
        for (at, letter) in group.char_indices().chain([(group.len(), ',')]) {
            match letter {
                '{' => level += 1,
                '}' => level -= 1,
                ',' if level == 0 => {
                    read_use_tree(prefix, &group[begin..at], imports);
                    begin = (at + 1).min(group.len());
                }
                _ => {}
            }
        }
        prefix.truncate(depth);
        return;
    }
    let (path, alias) = tree.split_once(" as ").unwrap_or((tree, ""));
    let own = path
        .split("::")
        .map(|it| it.trim().to_owned())
        .filter(|it| !it.is_empty() && it != "self");
    let path: Path = prefix.iter().cloned().chain(own).collect();
    let name = if alias.is_empty() {
        path.last().cloned()
    } else {
        Some(alias.trim().to_owned())
    };
    if let Some(name) = name {
        imports.insert(name, path);
    }
}

/// Every `a::b` in a text, and every word that may be an imported module's item.
fn paths_in(text: &str) -> BTreeSet<Path> {
    let mut paths = BTreeSet::new();
    let is_word = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == ':';
    for token in text.split(|letter| !is_word(letter)) {
        let path: Path = token
            .split("::")
            .filter(|it| !it.is_empty())
            .map(str::to_owned)
            .collect();
        if path.len() > 1 && path.iter().all(|name| !name.contains(':')) {
            paths.insert(path);
        }
    }
    paths
}

fn without_comments_and_strings(text: &str) -> String {
    let mut kept = String::new();
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or_default();
        // What stands between quotes is every second part.
        kept.extend(line.split('"').step_by(2));
        kept.push('\n');
    }
    kept
}

/// The groups of more than one node in which each node leads to each other one.
fn strongly_connected(uses: &[BTreeSet<usize>]) -> Vec<Vec<usize>> {
    let reached: Vec<BTreeSet<usize>> = (0..uses.len())
        .map(|start| {
            let (mut seen, mut open) = (BTreeSet::new(), vec![start]);
            while let Some(at) = open.pop() {
                open.extend(uses[at].iter().copied().filter(|next| seen.insert(*next)));
            }
            seen
        })
        .collect();
    let mut circles = Vec::new();
    let mut taken = BTreeSet::new();
    for start in 0..uses.len() {
        let circle: Vec<usize> = reached[start]
            .iter()
            .copied()
            .filter(|at| reached[*at].contains(&start))
            .collect();
        if circle.len() > 1 && taken.insert(circle.clone()) {
            circles.push(circle);
        }
    }
    circles
}
