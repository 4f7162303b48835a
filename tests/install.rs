//! Installed and found: what bindings/cpp/install and `cmake --install` put into a prefix, and the projects of users
//! that find it there, or have the source in theirs.
//!
//! The projects are in tests/install. All but one use the library that cargo built beside this test.

#[path = "support/debian.rs"]
mod debian;
#[path = "support/library.rs"]
mod library;
#[path = "install/tools.rs"]
mod tools;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The value of a result, or the end of a test that cannot run on this machine.
macro_rules! or_skip {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(why) => return tools::skip(line!(), why),
        }
    };
}

fn script() -> Command {
    Command::new(library::root().join("bindings/cpp/install"))
}

/// The libraries that cargo built beside this test, without what a debugger needs: that would be most of the work here.
fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let folder = library::scratch().join("built");
        fs::create_dir_all(&folder).expect("scratch");
        for name in ["libdualpipe.so", "libdualpipe.a"] {
            let from = library::built().with_file_name(name);
            library::run(
                Command::new("strip").arg("--strip-debug").arg("-o").arg(folder.join(name)).arg(from),
            );
        }
        folder
    })
}

/// A prefix with the library in it, moved after it was installed: nothing in it may know where it was.
fn prefix() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let (made, moved) = (library::scratch().join("made"), library::scratch().join("moved"));
        library::run(script().arg("--from").arg(built()).arg(&made));
        fs::rename(made, &moved).expect("the prefix can be moved");
        moved
    })
}

/// A folder of a name with these files.
fn folder(name: &str, files: &[(&str, &str)]) -> PathBuf {
    let folder = library::scratch().join(name);
    fs::create_dir_all(&folder).expect("scratch");
    for (name, content) in files {
        fs::write(folder.join(name), content).expect("scratch");
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o755)).expect("scratch");
    }
    folder
}

/// Two files that pass for the libraries where it only matters where they go.
fn dummies() -> &'static Path {
    static DUMMIES: OnceLock<PathBuf> = OnceLock::new();
    DUMMIES.get_or_init(|| {
        let shared = format!("\x7fELF\0{}\0", library::soname());
        folder("dummies", &[("libdualpipe.so", &shared), ("libdualpipe.a", "!<arch>\n")])
    })
}

/// All files under a folder: where a link points to, or the mode and the content.
fn tree(root: &Path) -> BTreeMap<String, (String, Vec<u8>)> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.expect("an entry").path();
            let metadata = path.symlink_metadata().expect("metadata");
            let inside = path.strip_prefix(root).expect("inside").display().to_string();
            if metadata.is_dir() {
                folders.push(path);
            } else if metadata.is_symlink() {
                let target = fs::read_link(&path).expect("a link");
                files.insert(inside, (format!("link to {}", target.display()), Vec::new()));
            } else {
                let mode = metadata.permissions().mode() & 0o777;
                files.insert(inside, (format!("{mode:o}"), fs::read(&path).expect("a file")));
            }
        }
    }
    files
}

/// Configures a project of tests/install, or libdualpipe's own; its build folder.
fn configure(cmake: &mut Command, source: &Path, build: &str) -> PathBuf {
    let build = library::scratch().join(build);
    library::run(cmake.arg("-S").arg(source).arg("-B").arg(&build));
    build
}

fn project(name: &str) -> PathBuf {
    library::root().join("tests/install").join(name)
}

/// CMake with options for a project whose own code must have no warnings.
fn strict() -> Result<Command, &'static str> {
    let mut cmake = tools::cmake("cmake")?;
    for language in ["C", "CXX"] {
        cmake.arg(format!("-DCMAKE_{language}_FLAGS=-Wall -Wextra -Werror -pedantic"));
    }
    cmake.args(["-DCMAKE_C_STANDARD=99", "-DCMAKE_C_EXTENSIONS=OFF", "-DCMAKE_CXX_EXTENSIONS=OFF"]);
    Ok(cmake)
}

/// Builds a configured project and runs its tests.
fn build_and_test(build: &Path) -> Result<(), &'static str> {
    library::run(tools::cmake("cmake")?.arg("--build").arg(build));
    let options = ["--output-on-failure", "--no-tests=error", "--timeout", "120"];
    library::run(tools::cmake("ctest")?.args(options).current_dir(build));
    Ok(())
}

#[test]
fn the_script_installs_every_file() {
    let full_name = format!("libdualpipe.so.{VERSION}");
    let mut want = vec![
        ("lib/libdualpipe.so".into(), format!("link to {}", library::soname())),
        (format!("lib/{}", library::soname()), format!("link to {full_name}")),
        (format!("lib/{full_name}"), "755".into()),
    ];
    let mut files = vec!["lib/libdualpipe.a".to_string(), "lib/pkgconfig/dualpipe.pc".into()];
    files.extend(
        ["-config", "-config-version", "-targets"].map(|n| format!("lib/cmake/dualpipe/dualpipe{n}.cmake")),
    );
    for folder in [library::include(), library::root().join("bindings/cpp/include")] {
        files.extend(tree(&folder).keys().map(|header| format!("include/{header}")));
    }
    want.extend(files.into_iter().map(|file| (file, "644".into())));
    want.sort();
    let installed = tree(prefix());
    let got = installed.iter().map(|(path, (what, _))| (path.clone(), what.clone()));
    assert_eq!(got.collect::<Vec<_>>(), want);
    for (path, (_, content)) in &installed {
        let is_filled = path.ends_with(".pc") || path.ends_with(".cmake");
        let is_right = !is_filled || !content.contains(&b'@');
        assert!(is_right, "{path}: a variable was not replaced");
    }
}

/// Where a distributor puts it, and where everyone else does.
#[test]
fn cmake_installs_the_same_files_as_the_script() {
    for libdir in ["lib", "lib/x86_64-linux-gnu"] {
        let name = libdir.replace('/', "-");
        let (by_script, by_cmake) = (format!("by script {name}"), format!("by cmake {name}"));
        let roots = [by_script, by_cmake].map(|name| library::scratch().join(name));
        let mut install = script();
        install.arg("--from").arg(dummies()).args(["--libdir", libdir, "/usr"]);
        library::run(install.env("DESTDIR", &roots[0]));

        let mut cmake = or_skip!(tools::cmake("cmake"));
        cmake.arg(format!("-DDUALPIPE_LIBRARY_DIR={}", dummies().display()));
        cmake.args(["-DCMAKE_INSTALL_PREFIX=/usr", &format!("-DCMAKE_INSTALL_LIBDIR={libdir}")]);
        let build = configure(&mut cmake, &library::root().join("bindings/cpp"), &format!("cmake-{name}"));
        for step in ["--build", "--install"] {
            let mut cmake = or_skip!(tools::cmake("cmake"));
            library::run(cmake.arg(step).arg(&build).env("DESTDIR", &roots[1]));
        }

        let [by_script, by_cmake] = roots.each_ref().map(|root| tree(root));
        assert_eq!(by_script.keys().collect::<Vec<_>>(), by_cmake.keys().collect::<Vec<_>>());
        for (path, file) in &by_script {
            assert!(file == &by_cmake[path], "{path} is not the same");
        }
        let library = format!("usr/{libdir}/libdualpipe.so.{VERSION}");
        assert!(by_script.contains_key(&library), "{library} is missing");
        accepts(&roots[0].join("usr"), VERSION, &format!("accepts-{name}"));
    }
}

/// What neither way can install: no libraries, those of another version, Rust that is too old; and the words for it.
#[test]
fn what_cannot_be_installed_is_refused() {
    let empty = folder("empty", &[]);
    let old = folder("old", &[("libdualpipe.so", "\0libdualpipe.so.0.0\0"), ("libdualpipe.a", "")]);
    let old_cargo = folder("old cargo", &[("cargo", "#!/bin/sh\necho cargo 1.63.0\n")]);
    let target = library::scratch().join("refused");
    let [empty, old, cargo, target] =
        [&empty, &old, &old_cargo, &target].map(|path| path.display().to_string());
    let soname = format!("libdualpipe.so has not the SONAME {}", library::soname());
    let rust = format!("install Rust {} or newer with https://rustup.rs", env!("CARGO_PKG_RUST_VERSION"));

    let path = format!("{cargo}:{}", std::env::var("PATH").expect("a PATH"));
    let cases: [(&[&str], &str); 8] = [
        (&[], "PREFIX is missing"),
        (&[&target, "again"], "one PREFIX, not both"),
        (&["--form", &empty, &target], "there is no option --form"),
        (&[&target, "--from"], "--from needs a folder"),
        (&["--libdir", "../lib", &target], "--libdir is ../lib, must be a folder under PREFIX"),
        (&["--from", &empty, &target], "empty/libdualpipe.so is missing"),
        (&["--from", &old, &target], &soname),
        (&[&target], &rust),
    ];
    for (arguments, words) in cases {
        must_fail(script().args(arguments).env("PATH", &path), words);
    }
    assert!(!Path::new(&target).exists(), "something was installed");

    let cases = [
        (format!("-DDUALPIPE_LIBRARY_DIR={empty}"), "empty/libdualpipe.so is missing"),
        (format!("-DDUALPIPE_LIBRARY_DIR={old}"), &soname),
        (format!("-DDUALPIPE_CARGO={cargo}/cargo"), &rust),
    ];
    for (i, (option, words)) in cases.iter().enumerate() {
        let mut cmake = or_skip!(tools::cmake("cmake"));
        cmake.arg("-S").arg(library::root().join("bindings/cpp")).arg(option);
        must_fail(cmake.arg("-B").arg(library::scratch().join(format!("refused-cmake-{i}"))), words);
    }
}

/// Runs a command that must fail with these words, however its lines are broken.
fn must_fail(command: &mut Command, words: &str) {
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(!output.status.success() && said.contains(words), "{command:?}: {said}");
}

#[test]
fn pkg_config_finds_it() {
    or_skip!(tools::find_pkg_config());
    let mut run = Command::new(project("pkgconfig").join("run"));
    let path = prefix().join("lib/pkgconfig");
    library::run(
        run.arg(VERSION).arg(library::scratch()).env("PKG_CONFIG_PATH", path).env_remove("LD_LIBRARY_PATH"),
    );
}

/// Also linked statically, as plugins, with threads and forks: see the project.
#[test]
fn find_package_finds_it() {
    let mut cmake = or_skip!(strict());
    cmake.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix().display()));
    let build = configure(&mut cmake, &project("find_package"), "find_package");
    or_skip!(build_and_test(&build));
}

/// The too_new project, configured: whether it found what it asked for, and what CMake said.
fn request(prefix: &Path, version: &str, build: &str) -> Result<(bool, String), &'static str> {
    let mut cmake = tools::cmake("cmake")?;
    cmake.arg("-S").arg(project("too_new")).arg("-B").arg(library::scratch().join(build));
    // The folder that a C compiler would have told of: no language is enabled.
    cmake.args([&format!("-DREQUESTED={version}"), "-DCMAKE_LIBRARY_ARCHITECTURE=x86_64-linux-gnu"]);
    cmake.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix.display()));
    let output = cmake.output().expect("cmake runs");
    let words = String::from_utf8_lossy(&output.stderr).split_whitespace().collect::<Vec<_>>().join(" ");
    Ok((output.status.success(), words))
}

fn accepts(prefix: &Path, version: &str, build: &str) {
    let (is_found, said) = request(prefix, version, build).expect("cmake is there");
    assert!(is_found, "{version} was refused: {said}");
}

#[test]
fn a_newer_version_and_another_abi_are_refused() {
    let refused = ["0.2", "0.1.1", "1.0", "0.0.9", "0.2...<0.3"];
    for (i, version) in refused.into_iter().enumerate() {
        let result = request(prefix(), version, &format!("refused-{i}"));
        let (is_found, said) = or_skip!(result);
        assert!(!is_found, "{version} was accepted");
        let want = ["considered but not accepted", &format!("dualpipe-config.cmake, version: {VERSION}")];
        assert!(want.iter().all(|words| said.contains(words)), "{version}: {said}");
    }
    for (i, version) in ["0.1", "0.1.0;EXACT", "0.1...0.3", "0.0...<0.2"].into_iter().enumerate() {
        accepts(prefix(), version, &format!("accepted-{i}"));
    }
}

/// The one test in which CMake calls cargo: into a folder that stays from run to run, unoptimized, to be done sooner.
#[test]
fn add_subdirectory_builds_it_with_cargo() {
    let cargo = library::root().join("target/cmake/cargo");
    let mut cmake = or_skip!(strict());
    cmake.arg(format!("-DDUALPIPE_SOURCE={}", library::root().display()));
    cmake.args(["-DDUALPIPE_PROFILE=dev", "-DDUALPIPE_INSTALL=ON"]);
    cmake.arg(format!("-DDUALPIPE_TARGET_DIR={}", cargo.display()));
    let build = configure(&mut cmake, &project("add_subdirectory"), "add_subdirectory");
    or_skip!(build_and_test(&build));
    let installed = library::scratch().join("by cargo");
    let mut cmake = or_skip!(tools::cmake("cmake"));
    library::run(cmake.arg("--install").arg(&build).arg("--prefix").arg(&installed));
    accepts(&installed, VERSION, "accepts-by-cargo");
}

#[test]
fn fetch_content_uses_it_from_source() {
    let mut cmake = or_skip!(strict());
    cmake.arg(format!("-DFETCHCONTENT_SOURCE_DIR_DUALPIPE={}", library::root().display()));
    cmake.arg(format!("-DDUALPIPE_LIBRARY_DIR={}", built().display()));
    let build = configure(&mut cmake, &project("fetch_content"), "fetch_content");
    or_skip!(build_and_test(&build));
}
