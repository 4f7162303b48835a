//! stub
/// What a check found out about a schedule that can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckReport {}
