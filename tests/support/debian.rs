//! Programs that a test needs: the machine's own, or else those of Debian's packages, which root can install.

use std::io::Write;
use std::process::{Command, Stdio};

/// Whether all programs are there, which may take an installation of packages.
///
/// # Errors
/// Why they are not: in words for who reads that a test was skipped.
pub(crate) fn find_or_install(programs: &[&str], packages: &[&str]) -> Result<(), String> {
    let missing = || programs.iter().find(|program| !is_there(program));
    let Some(first) = missing() else { return Ok(()) };
    let id = Command::new("id").arg("-u").output().map_err(|e| format!("id: {e}"))?;
    if id.stdout != b"0\n" || !is_there("apt-get") {
        let packages = packages.join(" ");
        return Err(format!(
            "there is no {first}, and only root of a Debian can install it here: apt-get install {packages}"
        ));
    }
    apt_get(&["update"])?;
    apt_get(&[&["install", "-y", "--no-install-recommends"], packages].concat())?;
    match missing() {
        Some(program) => {
            Err(format!("there is no {program}, not even with Debian's {}", packages.join(" and ")))
        }
        None => Ok(()),
    }
}

/// Past the test harness, which would hide it: it must be seen, though the test passes.
pub(crate) fn say(text: &str) {
    writeln!(std::io::stderr(), "{text}").expect("stderr");
}

fn is_there(program: &str) -> bool {
    let mut command = Command::new(program);
    let status = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Waits for others that install, and not for ever.
fn apt_get(arguments: &[&str]) -> Result<(), String> {
    let mut command = Command::new("timeout");
    command.args(["600", "apt-get", "-o", "DPkg::Lock::Timeout=300"]).args(arguments);
    let output = command.env("DEBIAN_FRONTEND", "noninteractive").output();
    let output = output.map_err(|e| format!("apt-get: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
