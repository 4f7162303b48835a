//! The headers are those of the source, compile everywhere, and declare what the library exports.
//!
//! `UPDATE_EXPECT=1 cargo test --test header` writes them anew. A file of src/capi that mod.rs makes `pub mod` gets a
//! header of its name in include/dualpipe; dualpipe.h, which includes them, begins with the text at the head of mod.rs.

#[path = "support/library.rs"]
mod library;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::Command;

use expect_test::expect_file;

/// The modules that have a header, in the order of mod.rs.
fn modules() -> Vec<String> {
    let modules = source("mod").lines().map(String::from).collect::<Vec<_>>();
    let modules = modules.iter().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    modules.map(String::from).collect()
}

/// The source of a module, with the files that its head includes in their places.
fn source(module: &str) -> String {
    let text = read(&format!("{module}.rs"));
    let lines =
        text.lines().map(|line| match line.strip_prefix(INCLUDED).and_then(|l| l.strip_suffix("\")]")) {
            Some(file) => {
                read(file).lines().map(|line| format!("//! {line}").trim_end().to_owned() + "\n").collect()
            }
            None => format!("{line}\n"),
        });
    lines.collect()
}

/// What stands before the name of a file whose lines are part of a comment at the head of a module.
const INCLUDED: &str = "#![doc = include_str!(\"";

fn read(file: &str) -> String {
    let path = library::root().join("src/capi").join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The header of a module.
fn header(module: &str) -> String {
    let source = source(module);
    let guard = format!("DUALPIPE_{}_H", module.to_uppercase());
    let mut config = cbindgen::Config {
        language: cbindgen::Language::C,
        cpp_compat: true,
        style: cbindgen::Style::Both,
        documentation_style: cbindgen::DocumentationStyle::Doxy,
        no_includes: true,
        sys_includes: vec!["stddef.h".into(), "stdint.h".into()],
        includes: modules()
            .into_iter()
            .filter(|other| source.contains(&format!("super::{other}::")))
            .collect(),
        header: Some(format!("{}\n{GENERATED}\n\n#ifndef {guard}\n#define {guard}", comment(&source))),
        line_length: 100,
        tab_width: 2,
        usize_is_size_t: true,
        after_includes: (module == "version").then(version_macros),
        trailer: Some(format!("{}#endif /* {guard} */", initializers(&source))),
        ..Default::default()
    };
    config.includes.retain(|other| other != module);
    config.includes.iter_mut().for_each(|other| *other += ".h");
    config.enumeration.prefix_with_name = false;
    config.export.include = types(&source);
    if module == "tensor" {
        config.after_includes = Some(UNLESS_DLPACK_IS_THERE.into());
        config.trailer = config.trailer.map(|end| format!("#endif /* DLPack */\n\n{end}"));
    }
    let mut header = Vec::new();
    let path = library::root().join(format!("src/capi/{module}.rs"));
    let bindings = cbindgen::Builder::new().with_config(config).with_src(path).generate();
    bindings.unwrap_or_else(|e| panic!("{module}: {e}")).write(&mut header);
    String::from_utf8(header).expect("cbindgen writes UTF-8")
}

/// No line of a header is wider.
const WIDTH: usize = 120;

const GENERATED: &str = "/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */";

const UNLESS_DLPACK_IS_THERE: &str = "\
/* These are DLPack's own names. Include dlpack.h, if at all, before this header: then its are used. */
#if !defined(DLPACK_DLPACK_H_) && !defined(DLPACK_VERSION) && !defined(DLPACK_MAJOR_VERSION)";

/// The `//!` lines of a source as a C comment: headings underlined, what is fenced indented instead.
fn comment(source: &str) -> String {
    let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
    let (mut comment, mut is_fenced) = (String::from("/*\n"), false);
    for line in lines.map(|line| line.strip_prefix(' ').unwrap_or(line)) {
        if line.starts_with("```") {
            is_fenced = !is_fenced;
            continue;
        }
        let heading = line.strip_prefix("# ").filter(|_| !is_fenced);
        let line = format!(" * {}{}", if is_fenced { "    " } else { "" }, heading.unwrap_or(line));
        comment += line.trim_end();
        comment.push('\n');
        if let Some(heading) = heading {
            writeln!(comment, " * {}", "-".repeat(heading.chars().count())).expect("a String");
        }
    }
    comment + " */"
}

fn types(source: &str) -> Vec<String> {
    let kinds = ["pub struct ", "pub enum ", "pub type ", "pub const "];
    let names = source.lines().filter_map(|line| kinds.iter().find_map(|kind| line.strip_prefix(kind)));
    names.filter_map(|rest| rest.split([' ', '(', ':']).next()).map(String::from).collect()
}

/// An INIT macro for each struct that a caller fills and that may grow: its size, and 0 or NULL for every other field.
fn initializers(source: &str) -> String {
    let mut macros = String::new();
    for item in source.split("pub struct ").skip(1) {
        let name = item.split([' ', '(']).next().unwrap_or_default();
        let body =
            item.split_once('{').and_then(|(_, body)| body.split_once("\n}")).map_or("", |(body, _)| body);
        let fields: Vec<_> =
            body.lines().filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(": ")).collect();
        if !source.contains(&format!("unsafe impl Growing for {name} ")) {
            continue;
        }
        assert_eq!(fields.first(), Some(&("size", "u32,")), "{name}");
        let zeros = fields[1..].iter().map(|(_, kind)| match kind.trim_end_matches(',') {
            "u8" | "u16" | "u32" | "u64" | "i32" | "i64" | "usize" | "f64" => "0",
            kind if kind.starts_with('*') || kind.ends_with("_fn") || kind.ends_with("_t") => "NULL",
            kind => panic!("{name}: teach initializers() the type {kind}"),
        });
        let zeros = zeros.collect::<Vec<_>>().join(", ");
        let macro_name = name.to_uppercase();
        let comment = format!("/** Initializes a {name}: `{name} x = {macro_name}_INIT;` */");
        let is_wide = comment.len() > WIDTH;
        let comment = if is_wide { comment.replacen(": `", ":\n * `", 1) } else { comment };
        writeln!(macros, "{comment}").expect("a String");
        let definition = format!("#define {macro_name}_INIT {{ sizeof({name}), {zeros} }}\n");
        let is_wide = definition.len() > WIDTH;
        let definition = if is_wide { definition.replacen(" {", " \\\n  {", 1) } else { definition };
        writeln!(macros, "{definition}").expect("a String");
    }
    macros
}

fn version_macros() -> String {
    let [major, minor, patch] =
        [env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"), env!("CARGO_PKG_VERSION_PATCH")];
    format!(
        "#define DUALPIPE_VERSION_MAJOR {major}\n#define DUALPIPE_VERSION_MINOR {minor}\n\
         #define DUALPIPE_VERSION_PATCH {patch}\n\
         /** MAJOR * 10000 + MINOR * 100 + PATCH of this header. dualpipe_version() is the library's. */\n\
         #define DUALPIPE_VERSION \\\n  (DUALPIPE_VERSION_MAJOR * 10000 + DUALPIPE_VERSION_MINOR * 100 + DUALPIPE_VERSION_PATCH)"
    )
}

fn umbrella() -> String {
    let includes: String =
        modules().iter().map(|module| format!("#include \"dualpipe/{module}.h\"\n")).collect();
    let comment = comment(&source("mod"));
    format!("{comment}\n{GENERATED}\n\n#ifndef DUALPIPE_H\n#define DUALPIPE_H\n\n{includes}\n#endif /* DUALPIPE_H */\n")
}

#[test]
fn headers_are_those_of_the_source() {
    for module in modules() {
        let path = library::include().join(format!("dualpipe/{module}.h"));
        let header = header(&module);
        let wide = header.lines().find(|line| line.chars().count() > WIDTH);
        assert_eq!(wide, None, "{module}.h: wider than {WIDTH} columns");
        expect_file![path].assert_eq(&header);
    }
    let umbrella = umbrella();
    assert_eq!(umbrella.lines().find(|line| line.chars().count() > WIDTH), None, "dualpipe.h: a wide line");
    expect_file![library::include().join("dualpipe.h")].assert_eq(&umbrella);
    let files = std::fs::read_dir(library::include().join("dualpipe")).expect("include/dualpipe");
    let files: BTreeSet<String> =
        files.map(|file| file.expect("a file").file_name().to_string_lossy().into_owned()).collect();
    assert_eq!(
        files,
        modules().iter().map(|module| format!("{module}.h")).collect(),
        "a header without a source"
    );
}

#[test]
fn every_header_compiles_alone_and_twice_in_every_standard() {
    let headers = modules().into_iter().map(|module| format!("dualpipe/{module}.h"));
    for header in headers.chain(["dualpipe.h".to_string()]) {
        let source = library::scratch().join(header.replace('/', "_"));
        std::fs::write(&source, format!("#include <{header}>\n#include <{header}>\nint x;\n"))
            .expect("scratch");
        for standard in library::STANDARDS {
            let language = if standard.contains("++") { "c++" } else { "c" };
            library::run(library::compiler(standard).args(["-fsyntax-only", "-x", language]).arg(&source));
        }
    }
}

#[test]
fn every_example_of_a_page_compiles() {
    let mut examples = 0;
    for module in modules() {
        for (i, block) in examples_of(&source(&module)).into_iter().enumerate() {
            let source = library::scratch().join(format!("example-{module}-{i}.c"));
            std::fs::write(&source, block).expect("scratch");
            for standard in ["c99", "c17"] {
                let unused = ["-fsyntax-only", "-Wno-unused-function"];
                library::run(library::compiler(standard).args(unused).arg(&source));
            }
            examples += 1;
        }
    }
    assert!(examples >= 7, "the examples were not found");
}

/// What is fenced as C at the head of a source.
fn examples_of(source: &str) -> Vec<String> {
    let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
    let text: Vec<&str> = lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
    let text = text.join("\n");
    text.split("```c\n").skip(1).filter_map(|rest| rest.split_once("```")).map(|(c, _)| c.into()).collect()
}

#[test]
fn the_header_gives_way_to_dlpacks_own() {
    let source = library::scratch().join("with_dlpack.c");
    // As DLPack 1.x declares it.
    let dlpack = "#include <stdint.h>\n#define DLPACK_MAJOR_VERSION 1\n\
                  typedef enum { kDLCPU = 1 } DLDeviceType;\n\
                  typedef struct { DLDeviceType device_type; int32_t device_id; } DLDevice;\n\
                  typedef struct { uint8_t code; uint8_t bits; uint16_t lanes; } DLDataType;\n\
                  typedef struct { void *data; DLDevice device; int32_t ndim; DLDataType dtype; int64_t *shape;\n\
                  int64_t *strides; uint64_t byte_offset; } DLTensor;\n";
    let size = "typedef char check[sizeof(DLTensor) == 48 ? 1 : -1];\n";
    for before in [dlpack, ""] {
        std::fs::write(&source, format!("{before}#include <dualpipe.h>\n{size}")).expect("scratch");
        for standard in ["c99", "c17"] {
            library::run(library::compiler(standard).arg("-fsyntax-only").arg(&source));
        }
    }
}

#[test]
fn the_library_exports_the_functions_of_the_headers_and_nothing_else() {
    let listing = library::run(Command::new("nm").args(["-D", "--defined-only"]).arg(library::built()));
    let exported: BTreeSet<&str> =
        listing.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    let declared = library::functions_in_headers();
    let declared: BTreeSet<&str> = declared.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(exported, declared);
}

#[test]
fn the_library_has_the_soname_of_its_version_and_stays_loaded() {
    let dynamic = library::run(Command::new("readelf").arg("-dW").arg(library::built()));
    assert!(dynamic.contains(&format!("soname: [{}]", library::soname())), "{dynamic}");
    assert!(dynamic.contains("NODELETE"), "{dynamic}");
}

#[test]
fn the_version_is_the_headers() {
    let parts =
        [env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"), env!("CARGO_PKG_VERSION_PATCH")];
    let [major, minor, patch] = parts.map(|part| part.parse::<u32>().expect("a number"));
    assert!(minor < 100 && patch < 100);
    // SAFETY: they take nothing, and the text is static.
    let (number, text) = unsafe {
        let text = std::ffi::CStr::from_ptr(dualpipe::capi::version::dualpipe_version_string());
        (dualpipe::capi::version::dualpipe_version(), text.to_str())
    };
    assert_eq!(number, major * 10_000 + minor * 100 + patch);
    assert_eq!(text, Ok(env!("CARGO_PKG_VERSION")));
    let source = library::scratch().join("version.c");
    let check =
        format!("#include <dualpipe.h>\ntypedef char check[DUALPIPE_VERSION == {number} ? 1 : -1];\n");
    std::fs::write(&source, check).expect("scratch");
    library::run(library::compiler("c99").arg("-fsyntax-only").arg(&source));
}
