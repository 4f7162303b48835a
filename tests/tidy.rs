//! Properties of the source itself: floors, unsafe, lengths, leftovers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Longest file, of any kind.
const LINES_MAX: usize = 500;
/// Widest line; rustfmt.toml has the same number for code.
const COLUMNS_MAX: usize = 120;
/// Where `unsafe` may be.
const UNSAFE: [&str; 4] = ["src/capi/", "src/execute/device/", "src/execute/transport/", "src/moe/"];
/// Words that say that something was left undone.
const LEFTOVERS: [&str; 5] = ["FIX\u{4d}E", "TO\u{44}O", "dbg\u{21}(", "todo\u{21}(", "unimplemented\u{21}("];

struct File {
    /// From the root of the project, with `/`.
    path: String,
    text: String,
}

/// The files with these endings under a folder of the project.
fn files(folder: &str, endings: &[&str]) -> Vec<File> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(ROOT).join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        for path in paths {
            let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
            if path.is_dir() {
                folders.push(path);
            } else if endings.contains(&ending) {
                let inside = path.strip_prefix(ROOT).unwrap().to_str().unwrap();
                found
                    .push(File { path: inside.replace('\\', "/"), text: fs::read_to_string(&path).unwrap() });
            }
        }
    }
    found
}

fn all_files() -> Vec<File> {
    let folders = ["src", "tests", "benches", "examples", "bindings", "kernels"];
    folders
        .iter()
        .flat_map(|folder| files(folder, &["rs", "c", "h", "cc", "cpp", "hpp", "py", "cu"]))
        .collect()
}

/// Lines of code, with their numbers: comments left out.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(i, line)| (i + 1, line));
    lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// The table at the head of src/lib.rs.
fn floors(text: &str) -> BTreeMap<String, u32> {
    let mut floors = BTreeMap::new();
    for row in text.lines().filter_map(|line| line.strip_prefix("//! |")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let Ok(floor) = cells[0].parse() else { continue };
        floors.extend(cells[1].split_whitespace().map(|module| (module.to_string(), floor)));
    }
    floors
}

/// What breaks the floors: a module may use itself and those on lower floors.
fn upward_uses(floors: &BTreeMap<String, u32>, file: &File) -> Vec<String> {
    let module = file.path.trim_start_matches("src/").split(['/', '.']).next().unwrap();
    let Some(&own) = floors.get(module) else {
        return vec![format!("{}: `{module}` is not in the floor table of src/lib.rs", file.path)];
    };
    let mut wrong = Vec::new();
    for (number, line) in code(&file.text) {
        for rest in line.split("crate::").skip(1) {
            // Both `crate::x` and `crate::{x, y}`.
            let list = rest.strip_prefix('{').map_or(rest, |list| list.split('}').next().unwrap());
            let names = if list.len() < rest.len() { list.split(',').collect() } else { vec![rest] };
            for name in names {
                let is_word = |c: &char| c.is_alphanumeric() || *c == '_';
                let used: String = name.trim().chars().take_while(is_word).collect();
                let is_lower = floors.get(&used).is_some_and(|&floor| floor < own);
                if used != module && !is_lower && used.starts_with(char::is_lowercase) {
                    wrong.push(format!("{}:{number}: `{module}` (floor {own}) uses `{used}`", file.path));
                }
            }
        }
    }
    wrong
}

fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn modules_use_lower_floors_only() {
    let floors = floors(&fs::read_to_string(Path::new(ROOT).join("src/lib.rs")).unwrap());
    assert!(floors.len() > 10, "the floor table of src/lib.rs was not found");
    let sources = files("src", &["rs"]);
    let wrong = sources.iter().filter(|file| file.path != "src/lib.rs").flat_map(|f| upward_uses(&floors, f));
    assert_none(&wrong.collect::<Vec<_>>());
}

#[test]
fn an_upward_use_is_found() {
    let floors =
        floors("//! | 1 | op | words |\n//! | 2 | schedule | orders |\n//! | 5 | sim program | time |\n");
    let planted = |text: &str| File { path: "src/schedule/dualpipe.rs".into(), text: text.into() };
    let good = planted("use crate::op::Op;\nuse crate::schedule::Work;\n// use crate::sim::x;\n");
    assert!(upward_uses(&floors, &good).is_empty());
    let bad = planted("use crate::op::Op;\nlet x = crate::sim::simulate();\nuse crate::{op, program};\n");
    let want = ["2: `schedule` (floor 2) uses `sim`", "3: `schedule` (floor 2) uses `program`"];
    assert_eq!(upward_uses(&floors, &bad), want.map(|w| format!("src/schedule/dualpipe.rs:{w}")));
}

#[test]
fn unsafe_stays_where_it_belongs() {
    let mut wrong = Vec::new();
    for file in files("src", &["rs"]) {
        let is_allowed = UNSAFE.iter().any(|folder| file.path.starts_with(folder));
        let lines = code(&file.text).filter(|(_, line)| line.contains("unsafe "));
        wrong.extend(
            lines.filter(|_| !is_allowed).map(|(number, _)| format!("{}:{number}: unsafe", file.path)),
        );
    }
    assert_none(&wrong);
}

#[test]
fn no_file_outgrows_its_reader() {
    let mut wrong = Vec::new();
    for file in all_files() {
        let lines = file.text.lines().count();
        // Copies of include/, which is written from src/capi.
        let is_copy = file.path.starts_with("tests/abi/") && file.path.ends_with(".h");
        if lines > LINES_MAX && !is_copy {
            wrong.push(format!("{}: {lines} lines, at most {LINES_MAX}", file.path));
        }
        if file.path.ends_with(".rs") && !file.text.starts_with("//!") {
            wrong.push(format!("{}: does not say at its head what it is for", file.path));
        }
        for (i, line) in file.text.lines().enumerate() {
            let is_text =
                line.contains('"') || line.trim_start().starts_with(['0', '1', '2', '3', '4', '5', '6', '7']);
            if line.chars().count() > COLUMNS_MAX && !is_text {
                wrong.push(format!("{}:{}: wider than {COLUMNS_MAX} columns", file.path, i + 1));
            }
            if let Some(word) = LEFTOVERS.iter().find(|&&word| line.contains(word)) {
                wrong.push(format!("{}:{}: {word}", file.path, i + 1));
            }
        }
    }
    assert_none(&wrong);
}
