//! The library keeps its ABI: docs/abi.md says what is promised, tests/abi/README.md how it is held.

mod compare;
mod headers;
mod layout;
#[path = "../support/library.rs"]
mod library;
mod mutations;
mod text;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use compare::{changes, not_exported, Changes};
use text::Abi;

/// A release that the library keeps a promise to: a folder with its headers and its abi.txt.
struct Release {
    /// MAJOR.MINOR.
    version: String,
    folder: PathBuf,
    described: Abi,
    is_released: bool,
}

/// How far the library of this version may differ from a release.
#[derive(Debug, PartialEq, Eq)]
enum Promise {
    /// The same MINOR: nothing changes.
    Nothing,
    /// The same MAJOR, from 1.0 on: there may be more.
    Additions,
    /// None: the SONAME is another.
    Break,
}

fn promise(release: &str, library: &str) -> Promise {
    let major = |version: &str| version.split('.').next().map(String::from);
    match release == library {
        true => Promise::Nothing,
        false if major(release) == major(library) && major(library) != Some("0".into()) => Promise::Additions,
        false => Promise::Break,
    }
}

/// MAJOR.MINOR of the library.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR"));

/// A release has its heading in the changelog.
fn is_released(changelog: &str, version: &str) -> bool {
    changelog.lines().any(|line| line.starts_with(&format!("## [{version}.0]")))
}

/// The releases to which something is promised. `UPDATE_EXPECT=1` first takes over what is not released yet.
fn releases() -> &'static [Release] {
    static RELEASES: OnceLock<Vec<Release>> = OnceLock::new();
    RELEASES.get_or_init(|| {
        let own = library::root().join("tests/abi").join(VERSION);
        let changelog = std::fs::read_to_string(library::root().join("CHANGELOG.md")).expect("CHANGELOG.md");
        if std::env::var_os("UPDATE_EXPECT").is_some() && !is_released(&changelog, VERSION) {
            bless(&own);
        }
        let blessed = own.join("abi.txt").exists();
        assert!(blessed, "tests/abi/{VERSION} is missing: `UPDATE_EXPECT=1 cargo test --test abi` makes it");
        let folders = std::fs::read_dir(library::root().join("tests/abi")).expect("tests/abi");
        let mut folders: Vec<PathBuf> = folders.map(|file| file.expect("a file").path()).collect();
        folders.retain(|folder| folder.join("abi.txt").exists());
        folders.sort();
        let release = |folder: PathBuf| {
            let version = folder.file_name().expect("a folder").to_string_lossy().into_owned();
            let described = Abi::parse(&std::fs::read_to_string(folder.join("abi.txt")).expect("abi.txt"));
            Release { is_released: is_released(&changelog, &version), version, folder, described }
        };
        let mut releases: Vec<Release> = folders.into_iter().map(release).collect();
        releases.retain(|release| promise(&release.version, VERSION) != Promise::Break);
        releases
    })
}

/// Makes a folder's headers and its abi.txt those of today.
fn bless(folder: &Path) {
    let _ = std::fs::remove_dir_all(folder);
    headers::copy(&library::include(), folder);
    std::fs::write(folder.join("abi.txt"), described(today())).expect("abi.txt");
}

/// The ABI of include/.
fn today() -> &'static Abi {
    static TODAY: OnceLock<Abi> = OnceLock::new();
    TODAY.get_or_init(|| headers::read(&library::include(), &library::scratch().join("today")))
}

/// The text of an abi.txt.
fn described(abi: &Abi) -> String {
    format!(
        "# The ABI of libdualpipe {VERSION}, from the headers beside this file and a program compiled with them.\n\
         # `UPDATE_EXPECT=1 cargo test --test abi` writes it until {VERSION}.0 is released.\n{abi}"
    )
}

fn assert_none(what: &str, wrong: &[String], hint: &str) {
    assert!(wrong.is_empty(), "\n{what}:\n  {}\n{hint}", wrong.join("\n  "));
}

#[test]
fn each_description_is_that_of_the_headers_beside_it() {
    for Release { version, folder, described, .. } in releases() {
        let read = headers::read(folder, &library::scratch().join(format!("release-{version}")));
        let Changes { broken, added } = changes(described, &read);
        let hint = "The headers of a release and its abi.txt are never changed by hand.";
        assert_none(
            &format!("tests/abi/{version}: abi.txt and the headers differ"),
            &[broken, added].concat(),
            hint,
        );
        assert_eq!(Abi::parse(&read.to_string()), read, "the text can be read back");
    }
}

#[test]
fn the_library_keeps_its_promise_to_each_release() {
    let listing = library::run(Command::new("nm").args(["-D", "--defined-only"]).arg(library::built()));
    let exported = listing.lines().filter_map(|line| line.split_whitespace().nth(2)).collect::<BTreeSet<_>>();
    for Release { version, described, is_released, .. } in releases() {
        let Changes { mut broken, added } = changes(described, today());
        broken.extend(not_exported(described, &exported));
        if promise(version, VERSION) == Promise::Nothing {
            broken.extend(added);
        }
        let hint = match is_released {
            true => "It is released: docs/abi.md says which version this needs.",
            false => "If that is meant: `UPDATE_EXPECT=1 cargo test --test abi`, and review the diff of its abi.txt.",
        };
        assert_none(&format!("The ABI is not that of {version} any more"), &broken, hint);
    }
}

#[test]
fn the_headers_are_laid_out_alike_in_c_and_cpp() {
    let own = releases().iter().find(|release| release.version == VERSION).expect("its own");
    let assertions = layout::assertions(&own.described);
    for (standard, ending) in [("c99", "c"), ("c11", "c"), ("c17", "c"), ("c++11", "cpp"), ("c++20", "cpp")] {
        let source = library::scratch().join(format!("assertions.{ending}"));
        std::fs::write(&source, &assertions).expect("scratch");
        let object = source.with_extension(format!("{standard}.o"));
        // offsetof of a NULL's member, as C++ has it too.
        library::run(library::compiler(standard).arg("-c").arg(&source).arg("-o").arg(object));
    }
}

#[test]
fn the_structs_are_laid_out_alike_in_rust() {
    let own = releases().iter().find(|release| release.version == VERSION).expect("its own");
    let wrong: Vec<String> =
        own.described.structs().flat_map(|(name, layout)| layout::unlike_rust(name, layout)).collect();
    assert_none("Structs of Rust are laid out otherwise", &wrong, "");
    assert!(own.described.structs().count() > 25, "the structs were not found");
}

#[test]
fn a_program_of_each_release_runs_with_the_library_of_today() {
    let source = library::root().join("tests/abi/program.c");
    for Release { version, folder, .. } in releases() {
        let program = library::scratch().join(format!("program-{version}"));
        let mut compiler = headers::compiler(folder);
        compiler
            .args(["-Wall", "-Wextra", "-Werror", "-pedantic-errors"])
            .arg(&source)
            .arg("-o")
            .arg(&program)
            .arg("-L")
            .arg(library::folder())
            .arg("-ldualpipe");
        library::run(compiler.arg(format!("-Wl,-rpath,{}", library::folder().display())));
        library::run(&mut Command::new(program));
    }
}

#[test]
fn what_is_promised_follows_from_the_versions() {
    assert_eq!(promise("0.1", "0.1"), Promise::Nothing);
    assert_eq!(promise("0.1", "0.2"), Promise::Break);
    assert_eq!(promise("0.9", "1.0"), Promise::Break);
    assert_eq!(promise("1.0", "1.0"), Promise::Nothing);
    assert_eq!(promise("1.0", "1.3"), Promise::Additions);
    assert_eq!(promise("1.9", "2.0"), Promise::Break);
    let changelog = "# Changelog\n\n## [Unreleased]\n\n## [0.1.0] - 2026-12-01\n";
    assert!(
        is_released(changelog, "0.1") && !is_released(changelog, "0.2") && !is_released(changelog, "0.1.0")
    );
    assert!(!is_released("## [Unreleased]\n- after 0.1.0\n", "0.1"));
}
