//! A timeline as a Chrome trace.

use super::Timeline;

impl Timeline {
    /// The timeline as a Chrome trace.
    pub fn to_trace(&self) -> String {
        self.title.clone()
    }
}
