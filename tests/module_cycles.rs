//! Modules of a crate do not depend on each other in circles.
//!
//! Sibling modules are compared at every level: `a` depends on `b` if a file of `a`, or of a module inside
//! it, imports or names something of `b`, directly or through a re-export. Dependencies between a module
//! and the modules inside it do not count, and neither do tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, ItemUse, Macro, UseTree};

use crate::util::root;

/// Circles that remain: the parent module, and the modules that depend on each other. This list only
/// becomes shorter.
const REMAINING: &[(&str, &[&str])] = &[
    ("data", &["config", "documents", "tokenizer"]),
    ("data", &["loader", "prefetch"]),
    ("data", &["shard", "tokens"]),
    ("explain", &["derive", "formula"]),
    ("explain", &["explainer", "insight", "report", "what_if"]),
    (
        "model",
        &[
            "attention",
            "block",
            "config",
            "feed_forward",
            "forward_context",
            "init",
            "kv_cache",
            "norm",
            "position",
            "transformer",
        ],
    ),
    ("model", &["quantize", "weights"]),
    ("server", &["explain", "middleware", "routes", "tokens"]),
];

/// The position of a module in its crate; empty for the root.
type ModulePath = Vec<String>;

/// What a module contains.
#[derive(Debug, Default)]
struct Module {
    /// Names of the items that it defines.
    items: BTreeSet<String>,
    /// Its `use` declarations: the name, `*` for all, and the path.
    imports: Vec<(String, Vec<String>)>,
    /// Other paths that begin with `crate`, `self` or `super`.
    paths: Vec<Vec<String>>,
}

/// The modules of one crate or binary.
#[derive(Debug, Default)]
struct Modules {
    modules: BTreeMap<ModulePath, Module>,
    /// Modules that only tests have.
    tests: Vec<ModulePath>,
}

impl Modules {
    /// Reads all files below the folder of a crate's root file, except those of other binaries.
    fn read(folder: &Path) -> Self {
        let mut modules = Self::default();
        for file in rust_files(folder) {
            let relative = file.strip_prefix(folder).unwrap().with_extension("");
            let mut path: ModulePath = relative
                .iter()
                .map(|name| name.to_str().unwrap().to_string())
                .collect();
            if path.last().is_some_and(|name| name == "mod") || path == ["lib"] || path == ["main"]
            {
                path.pop();
            }
            modules.add(path, &fs::read_to_string(&file).unwrap());
        }
        modules.remove_tests();
        modules
    }

    fn add(&mut self, path: ModulePath, text: &str) {
        let file = syn::parse_file(text).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        let mut reader = Reader {
            modules: self,
            current: path,
        };
        reader.module();
        reader.visit_file(&file);
    }

    fn remove_tests(&mut self) {
        let Self { modules, tests } = self;
        modules.retain(|path, _| !tests.iter().any(|test| path.starts_with(test)));
    }

    /// The module to which `path`, as written in `from`, leads; `None` outside the crate.
    fn resolve(&self, from: &[String], path: &[String], depth: usize) -> Option<ModulePath> {
        let (first, rest) = path.split_first()?;
        let mut module = match first.as_str() {
            "crate" => ModulePath::new(),
            "self" => from.to_vec(),
            "super" => from[..from.len().checked_sub(1)?].to_vec(),
            _ => self.child(from, first, depth)?,
        };
        for name in rest {
            if name == "super" {
                module.pop()?;
            } else if let Some(child) = self.child(&module, name, depth) {
                module = child;
            } else {
                break;
            }
        }
        Some(module)
    }

    /// The module called `name` in `module`, or the one from which `module` imports `name`.
    fn child(&self, module: &[String], name: &str, depth: usize) -> Option<ModulePath> {
        let child = [module, &[name.to_string()]].concat();
        if self.modules.contains_key(&child) {
            return Some(child);
        }
        let contents = self.modules.get(module)?;
        // Imports may refer to each other.
        let depth = depth.checked_sub(1)?;
        if contents.items.contains(name) {
            return None;
        }
        let named = contents.imports.iter().find(|(import, _)| import == name);
        if let Some((_, path)) = named {
            return self.resolve(module, path, depth);
        }
        let all = contents.imports.iter().filter(|(import, _)| import == "*");
        all.filter_map(|(_, path)| self.resolve(module, path, depth))
            .find_map(|target| {
                let items = &self.modules.get(&target)?.items;
                let is_defined = items.contains(name).then(|| target.clone());
                is_defined.or_else(|| self.child(&target, name, depth))
            })
    }

    /// Dependencies between siblings, by their parent.
    fn dependencies(&self) -> BTreeMap<ModulePath, BTreeSet<(String, String)>> {
        let mut found = BTreeMap::<_, BTreeSet<_>>::new();
        for (module, contents) in &self.modules {
            let imports = contents.imports.iter().map(|(_, path)| path);
            for path in imports.chain(&contents.paths) {
                let Some(target) = self.resolve(module, path, 8) else {
                    continue;
                };
                let pairs = module.iter().zip(&target);
                let common = pairs.take_while(|(a, b)| a == b).count();
                if let (Some(a), Some(b)) = (module.get(common), target.get(common)) {
                    let siblings = found.entry(module[..common].to_vec()).or_default();
                    siblings.insert((a.clone(), b.clone()));
                }
            }
        }
        found
    }

    /// Groups of siblings that depend on each other, with their parent.
    fn circles(&self) -> Vec<(ModulePath, Vec<String>)> {
        let mut found = Vec::new();
        for (parent, dependencies) in self.dependencies() {
            let names: BTreeSet<&str> = dependencies.iter().map(|(a, _)| a.as_str()).collect();
            let mut seen = BTreeSet::new();
            for name in names {
                let reached = reachable(name, &dependencies);
                let circle: Vec<String> = reached
                    .iter()
                    .filter(|other| reachable(other, &dependencies).contains(name))
                    .map(ToString::to_string)
                    .collect();
                if circle.len() > 1 && seen.insert(circle.clone()) {
                    found.push((parent.clone(), circle));
                }
            }
        }
        found
    }
}

/// All names that `start` depends on, directly or not.
fn reachable<'a>(start: &str, dependencies: &'a BTreeSet<(String, String)>) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut open = vec![start];
    while let Some(name) = open.pop() {
        for (_, next) in dependencies.iter().filter(|(from, _)| from == name) {
            if reached.insert(next.as_str()) {
                open.push(next);
            }
        }
    }
    reached
}

/// Collects the modules of a file.
struct Reader<'a> {
    modules: &'a mut Modules,
    current: ModulePath,
}

impl Reader<'_> {
    fn module(&mut self) -> &mut Module {
        self.modules
            .modules
            .entry(self.current.clone())
            .or_default()
    }

    fn add_imports(&mut self, tree: &UseTree, mut path: Vec<String>) {
        let (name, last) = match tree {
            UseTree::Path(tree) => {
                path.push(tree.ident.to_string());
                return self.add_imports(&tree.tree, path);
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_imports(tree, path.clone());
                }
                return;
            }
            UseTree::Name(name) => (name.ident.to_string(), name.ident.to_string()),
            UseTree::Rename(name) => (name.rename.to_string(), name.ident.to_string()),
            UseTree::Glob(_) => ("*".to_string(), String::new()),
        };
        // `use a::{self}` imports `a`.
        let name = match (last.as_str(), path.last()) {
            ("self", Some(parent)) if name == "self" => parent.clone(),
            ("self" | "", _) => name,
            _ => {
                path.push(last);
                name
            }
        };
        self.module().imports.push((name, path));
    }

    fn add_path(&mut self, path: Vec<String>) {
        let is_local = matches!(path[0].as_str(), "crate" | "self" | "super");
        if is_local && path.len() > 1 {
            self.module().paths.push(path);
        }
    }
}

impl Visit<'_> for Reader<'_> {
    fn visit_item(&mut self, item: &Item) {
        let (attributes, name): (&[Attribute], _) = match item {
            Item::Const(item) => (&item.attrs, Some(&item.ident)),
            Item::Enum(item) => (&item.attrs, Some(&item.ident)),
            Item::Fn(item) => (&item.attrs, Some(&item.sig.ident)),
            Item::Impl(item) => (&item.attrs, None),
            Item::Macro(item) => (&item.attrs, item.ident.as_ref()),
            Item::Mod(item) => (&item.attrs, None),
            Item::Static(item) => (&item.attrs, Some(&item.ident)),
            Item::Struct(item) => (&item.attrs, Some(&item.ident)),
            Item::Trait(item) => (&item.attrs, Some(&item.ident)),
            Item::Type(item) => (&item.attrs, Some(&item.ident)),
            Item::Union(item) => (&item.attrs, Some(&item.ident)),
            Item::Use(item) => (&item.attrs, None),
            _ => (&[], None),
        };
        if is_test(attributes) {
            if let Item::Mod(item) = item {
                let path = [&self.current[..], &[item.ident.to_string()]].concat();
                self.modules.tests.push(path);
            }
            return;
        }
        if let Some(name) = name {
            self.module().items.insert(name.to_string());
        }
        visit::visit_item(self, item);
    }

    fn visit_item_mod(&mut self, item: &ItemMod) {
        self.current.push(item.ident.to_string());
        self.module();
        visit::visit_item_mod(self, item);
        self.current.pop();
    }

    fn visit_item_use(&mut self, item: &ItemUse) {
        self.add_imports(&item.tree, Vec::new());
    }

    fn visit_path(&mut self, path: &syn::Path) {
        let names = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string());
        self.add_path(names.collect());
        visit::visit_path(self, path);
    }

    /// Finds paths among the tokens, which are not parsed.
    fn visit_macro(&mut self, item: &Macro) {
        let text = item.tokens.to_string().replace("::", " :: ");
        let words: Vec<&str> = text.split_whitespace().collect();
        for start in 0..words.len() {
            let names = words[start..].chunks(2);
            let joined = names.clone().take_while(|pair| pair.get(1) == Some(&"::"));
            let path = names
                .take(joined.count() + 1)
                .map(|pair| pair[0].to_string());
            self.add_path(path.collect());
        }
        visit::visit_macro(self, item);
    }
}

/// Whether these attributes contain `#[cfg(test)]` or `#[test]`.
fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let is_cfg = attribute.path().is_ident("cfg");
        attribute.path().is_ident("test")
            || is_cfg
                && attribute
                    .parse_args::<syn::Ident>()
                    .is_ok_and(|name| name == "test")
    })
}

/// The Rust files in `folder` and the folders below it, except `bin`.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("bin") {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

#[test]
fn modules_do_not_depend_on_each_other_in_circles() {
    let mut found = BTreeSet::new();
    let mut count = 0;
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        let folder = entry.unwrap().path();
        let name = folder.file_name().unwrap().to_str().unwrap().to_string();
        let source = folder.join("src");
        let mut roots = vec![(name, source.clone())];
        for binary in fs::read_dir(source.join("bin")).into_iter().flatten() {
            let path = binary.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            roots.push((format!("bin/{name}"), path));
        }
        for (name, folder) in roots {
            let modules = Modules::read(&folder);
            count += modules.modules.len();
            for (parent, circle) in modules.circles() {
                let parent = [std::slice::from_ref(&name), &parent[..]].concat();
                found.insert((parent.join("::"), circle));
            }
        }
    }
    assert!(count > 200, "found only {count} modules");
    let listed: BTreeSet<_> = REMAINING
        .iter()
        .map(|(parent, circle)| {
            let circle = circle.iter().map(ToString::to_string).collect::<Vec<_>>();
            (parent.to_string(), circle)
        })
        .collect();
    let list: Vec<_> = found
        .iter()
        .map(|(parent, circle)| format!("    ({parent:?}, &{circle:?}),\n"))
        .collect();
    let list = list.concat();
    let new: Vec<_> = found.difference(&listed).collect();
    assert!(
        new.is_empty(),
        "modules depend on each other: {new:#?}\nall circles:\n{list}"
    );
    let gone: Vec<_> = listed.difference(&found).collect();
    assert!(
        gone.is_empty(),
        "not a circle any more: {gone:#?}\nset REMAINING to\n{list}"
    );
}

/// The circles among modules with these texts.
fn circles(files: &[(&str, &str)]) -> Vec<(ModulePath, Vec<String>)> {
    let mut modules = Modules::default();
    for (path, text) in files {
        let path = path.split("::").filter(|name| !name.is_empty());
        modules.add(path.map(str::to_string).collect(), text);
    }
    modules.remove_tests();
    modules.circles()
}

#[test]
fn planted_circles_are_found() {
    let lib = "mod a; mod b; pub use b::B; pub use c::*;";
    let cases: [(&str, &str); 7] = [
        ("use crate::b::B;", "use super::a::A;"),
        ("use crate::{b, x::y};", "fn f() { crate::a::g() }"),
        ("use super::B;", "struct B(crate::a::A);"),
        ("fn f() { use crate::b; }", "impl crate::a::T for u8 {}"),
        (
            "use crate::b as c;",
            "struct B; fn f() { println!(\"{}\", crate::a::X) }",
        ),
        (
            "mod inside { use super::super::b::B; }",
            "use crate::a::inside;",
        ),
        ("pub(crate) use crate::b::B as C;", "use crate::a::*;"),
    ];
    for (a, b) in cases {
        let found = circles(&[("", lib), ("a", a), ("b", b), ("c", "struct C;")]);
        let names = ["a", "b"].map(String::from).to_vec();
        assert_eq!(found, [(vec![], names)], "{a} {b}");
    }
    let nested = [
        ("", "mod p;"),
        ("p", "mod a; mod b;"),
        ("p::a", "use super::b::X;"),
    ];
    let found = circles(&[&nested[..], &[("p::b", "use crate::p::a;")]].concat());
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].0, ["p"]);
}

#[test]
fn one_way_dependencies_are_not_circles() {
    let lib = "mod a; mod b; pub use b::B; use a::helper;";
    let cases: [(&str, &str); 5] = [
        ("use crate::B;", "struct B;"),
        (
            "use crate::b::B;",
            "#[cfg(test)] mod tests { use crate::a::A; }",
        ),
        (
            "use crate::b::B;",
            "use serde::a; use std::path::Path; struct A(self::C); struct C;",
        ),
        ("use crate::b::B;", "#[test] fn f() { crate::a::g() }"),
        (
            "mod inside; use crate::b::B; use inside::X;",
            "// use crate::a;\nconst A: &str = \"crate::a::X\";",
        ),
    ];
    for (a, b) in cases {
        let files = [
            ("", lib),
            ("a", a),
            ("b", b),
            ("a::inside", "use super::A;"),
        ];
        assert_eq!(circles(&files), [], "{a} {b}");
    }
}
