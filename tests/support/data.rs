//! Where test data is.

use std::path::PathBuf;

/// A file of the larger, optional data: in the folder that `DUALPIPE_DATA` names, or in ../shared/data.
pub(crate) fn optional_data(name: &str) -> Option<String> {
    let folder = std::env::var_os("DUALPIPE_DATA").map(PathBuf::from);
    let beside = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data"));
    std::fs::read_to_string(folder.unwrap_or_else(beside).join(name)).ok()
}

/// A file of tests/data.
#[allow(dead_code)] // not every file that includes this has any
pub(crate) fn data(name: &str) -> String {
    let path = format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}
