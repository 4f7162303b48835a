//! CMake, Ninja and pkg-config: the machine's own, or else installed. Where one cannot be had, a test says so and ends.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::{debian, library};

/// What bindings/cpp/CMakeLists.txt asks for.
const CMAKE_OLDEST: (u32, u32) = (3, 20);

/// Says that the test at a line is skipped.
pub(crate) fn skip(line: u32, why: &str) {
    debian::say(&format!("tests/install.rs:{line}: skipped: {why}"));
}

/// A program of CMake's (cmake, ctest), with a generator, and without what cargo has put into the environment.
pub(crate) fn cmake(program: &str) -> Result<Command, &'static str> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let folder = FOLDER.get_or_init(find_cmake).as_ref().map_err(String::as_str)?;
    let mut command = Command::new(folder.join(program));
    let has_ninja = works(&folder.join("ninja")) || works(Path::new("ninja"));
    command.env("CMAKE_GENERATOR", if has_ninja { "Ninja" } else { "Unix Makefiles" });
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::iter::once(folder.clone()).chain(std::env::split_paths(&path));
    command.env("PATH", std::env::join_paths(path).expect("paths without colons"));
    // It has target/debug/deps, which no user has.
    command.env_remove("LD_LIBRARY_PATH");
    // What CMake has cargo build is not debugged.
    command.env("CARGO_PROFILE_DEV_DEBUG", "0");
    Ok(command)
}

/// The folder of cmake and ctest: one of PATH if a build tool is there, too, or a virtual environment under target/.
fn find_cmake() -> Result<PathBuf, String> {
    let is_new = |version: (u32, u32)| version >= CMAKE_OLDEST;
    let has_both =
        |folder: &PathBuf| cmake_version(folder).is_some_and(is_new) && works(&folder.join("ctest"));
    if ["ninja", "make"].iter().any(|name| works(Path::new(name))) {
        let path = std::env::var_os("PATH").unwrap_or_default();
        if let Some(folder) = std::env::split_paths(&path).find(has_both) {
            return Ok(folder);
        }
    }
    let venv = library::root().join("target/cmake");
    let folder = venv.join("bin");
    if !has_both(&folder) || !works(&folder.join("ninja")) {
        let python = std::env::var_os("PYTHON").unwrap_or("python3".into());
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "cmake", "ninja"];
        let why = |e| format!("there is no cmake, and none can be installed: {e}");
        try_run(Command::new(python).args(["-m", "venv"]).arg(&venv)).map_err(why)?;
        try_run(Command::new(folder.join("python")).args(pip)).map_err(why)?;
    }
    Ok(folder)
}

/// Of the cmake in a folder: "cmake version 3.25.1" is (3, 25).
fn cmake_version(folder: &Path) -> Option<(u32, u32)> {
    let output = Command::new(folder.join("cmake")).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut parts = text.split_whitespace().nth(2)?.split('.').map_while(|part| part.parse().ok());
    Some((parts.next()?, parts.next()?))
}

/// Whether there is a pkg-config, or one could be installed on a Debian machine by root.
pub(crate) fn find_pkg_config() -> Result<(), &'static str> {
    static FOUND: OnceLock<Result<(), String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| debian::find_or_install(&["pkg-config"], &["pkgconf"]));
    found.as_ref().map(|_| ()).map_err(String::as_str)
}

fn works(program: &Path) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

fn try_run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let failure = || format!("{command:?}: {}\n{stdout}{stderr}", output.status);
    output.status.success().then_some(()).ok_or_else(failure)
}
