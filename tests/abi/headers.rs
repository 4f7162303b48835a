//! The ABI of a folder of headers: what they declare, with the numbers of a program that was compiled with them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::library;
use crate::text::{Abi, Declaration, Field, Item, Layout, Signature};

/// The library's version is not the ABI's.
const VERSIONS: &str = "DUALPIPE_VERSION";

/// The ABI of the headers in a folder, which has dualpipe.h in it. What is made on the way is left in `scratch`.
pub(crate) fn read(include: &Path, scratch: &Path) -> Abi {
    std::fs::create_dir_all(scratch).expect("target/tmp can be written");
    let mut abi = declared(include, scratch);
    let mut numbers = measured(&abi, include, scratch).into_iter();
    let mut next = || numbers.next().expect("the shim prints a number for each");
    for (name, item) in &mut abi.items {
        match item {
            Item::Constant(number) => *number = next(),
            Item::Initializer => assert_eq!(next(), 1, "{name} must set the size, and 0 for all else"),
            Item::Struct(layout) => {
                (layout.size, layout.align) = (next() as usize, next() as usize);
                for field in &mut layout.fields {
                    (field.offset, field.size) = (next() as usize, next() as usize);
                }
            }
            Item::Function(_) | Item::Callback(_) | Item::Type(_) => {}
        }
    }
    abi
}

/// Copies dualpipe.h and its pages from one folder to another.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to.join("dualpipe")).expect("the folder can be written");
    let pages = std::fs::read_dir(from.join("dualpipe")).expect("a folder of headers");
    let pages = pages.map(|page| Path::new("dualpipe").join(page.expect("a file").file_name()));
    for header in pages.chain(["dualpipe.h".into()]) {
        std::fs::copy(from.join(&header), to.join(&header)).expect("a header can be copied");
    }
}

/// A C compiler for which `#include <dualpipe.h>` is that of a folder.
pub(crate) fn compiler(include: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CC").unwrap_or("cc".into()));
    command.args(["-std=c99", "-I"]).arg(include);
    command
}

/// What the headers declare, after the preprocessor; the numbers are still 0.
fn declared(include: &Path, scratch: &Path) -> Abi {
    let source = scratch.join("all.c");
    std::fs::write(&source, "#include <dualpipe.h>\n").expect("scratch");
    let text = library::run(compiler(include).args(["-E", "-dD"]).arg(&source));
    let mut abi = Abi { items: Vec::new(), pages: BTreeMap::new() };
    let (mut page, mut code) = (None, String::new());
    for line in text.lines() {
        if let Some(marker) = line.strip_prefix("# ") {
            let file = marker.split('"').nth(1).map(PathBuf::from);
            page = file.and_then(|file| file.strip_prefix(include).ok().map(Path::to_path_buf));
            continue;
        }
        let Some(page) = &page else { continue };
        let before = abi.items.len();
        if let Some(definition) = line.strip_prefix("#define ") {
            abi.items.extend(defined(definition));
        } else {
            code += line;
            code.push(' ');
            if line.ends_with(';') && code.matches('{').count() == code.matches('}').count() {
                let declared = declare(code.trim().trim_end_matches(';'), &mut abi.items);
                declared.unwrap_or_else(|| panic!("teach the ABI test this declaration: {code}"));
                code.clear();
            }
        }
        let page = page.display().to_string();
        if abi.items.len() > before && abi.pages.values().next_back() != Some(&page) {
            abi.pages.insert(before, page);
        }
    }
    assert!(code.trim().is_empty(), "not understood: {code}");
    abi
}

/// What a macro is, if programs have it compiled in.
fn defined(definition: &str) -> Option<(String, Item)> {
    let (name, value) = definition.split_once(' ')?;
    assert!(!name.contains('('), "{name}: teach the ABI test macros with arguments");
    let item = if name.ends_with("_INIT") { Item::Initializer } else { Item::Constant(0) };
    let is_one = name.starts_with("DUALPIPE_") && !name.starts_with(VERSIONS) && !value.trim().is_empty();
    is_one.then(|| (name.into(), item))
}

/// Adds what one declaration declares; `None` if it is of a form that the headers have not had so far.
fn declare(code: &str, items: &mut Vec<(String, Item)>) -> Option<()> {
    let body = code.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(body, _)| body);
    let list = |text: &str, separator: char| -> Option<Vec<Declaration>> {
        let parts = text.split(separator).map(str::trim).filter(|part| !["", "void"].contains(part));
        parts.map(Declaration::parse).collect()
    };
    if code.starts_with("enum ") {
        let names = body?.split(',').filter_map(|entry| entry.split('=').next());
        let names = names.map(str::trim).filter(|name| !name.is_empty());
        items.extend(names.map(|name| (name.into(), Item::Constant(0))));
        return Some(());
    }
    let (is_type, code) = code.strip_prefix("typedef ").map_or((false, code), |rest| (true, rest));
    let (name, item) = if let Some(body) = body {
        let fields = list(body, ';')?.into_iter().map(|what| Field { offset: 0, size: 0, what }).collect();
        (code.rsplit('}').next()?.trim().into(), Item::Struct(Layout { size: 0, align: 0, fields }))
    } else if let Some((head, parameters)) = code.split_once(if is_type { ")(" } else { "(" }) {
        let Declaration { kind, name } = Declaration::parse(&head.replace("(*", ""))?;
        let signature = Signature { returns: kind, parameters: list(parameters.trim_end_matches(')'), ',')? };
        (name, if is_type { Item::Callback(signature) } else { Item::Function(signature) })
    } else if is_type {
        let Declaration { kind, name } = Declaration::parse(code)?;
        let kind = if kind == name { "opaque".into() } else { kind };
        (name, Item::Type(kind))
    } else {
        return None;
    };
    items.push((name, item));
    Some(())
}

/// The numbers of an ABI, in order, as a program prints them that was compiled with the headers.
fn measured(abi: &Abi, include: &Path, scratch: &Path) -> Vec<i128> {
    let mut prints = String::new();
    for (name, item) in &abi.items {
        match item {
            Item::Constant(_) => writeln!(prints, "  printf(\"%lld\\n\", (long long)({name}));"),
            Item::Initializer => {
                let kind = name.trim_end_matches("_INIT").to_lowercase();
                writeln!(prints, "  {{ static const {kind} x = {name}; print_whether_zero(&x, sizeof x); }}")
            }
            Item::Struct(layout) => {
                writeln!(prints, "  {{ struct aligned {{ char c; {name} x; }};").expect("a String");
                writeln!(prints, "    PRINT(sizeof({name})); PRINT(offsetof(struct aligned, x)); }}")
                    .expect("a String");
                layout.fields.iter().map(|field| &field.what.name).try_for_each(|field| {
                    writeln!(
                        prints,
                        "  PRINT(offsetof({name}, {field})); PRINT(sizeof((({name} *)0)->{field}));"
                    )
                })
            }
            Item::Function(_) | Item::Callback(_) | Item::Type(_) => Ok(()),
        }
        .expect("a String");
    }
    let (source, program) = (scratch.join("shim.c"), scratch.join("shim"));
    std::fs::write(&source, format!("{SHIM}int main(void) {{\n{prints}  return 0;\n}}\n")).expect("scratch");
    library::run(compiler(include).arg("-w").arg(&source).arg("-o").arg(&program));
    library::run(&mut Command::new(program)).lines().map(|line| line.parse().expect("a number")).collect()
}

const SHIM: &str = r#"/* The numbers that a program compiled with these headers has in it. */
#include <dualpipe.h>
#include <stdio.h>
#include <string.h>

#define PRINT(number) printf("%zu\n", number)

/* 1 if a struct has its size at its head, and 0 in every other byte. */
static void print_whether_zero(const void *data, size_t size) {
  const unsigned char *bytes = data;
  uint32_t head;
  size_t i;
  memcpy(&head, bytes, sizeof head);
  for (i = sizeof head; i < size && bytes[i] == 0; i++) continue;
  printf("%d\n", head == size && i == size);
}

"#;
