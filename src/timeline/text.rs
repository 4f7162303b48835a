//! A timeline as text for a terminal: one line per rank.

use super::Timeline;

impl Timeline {
    /// The timeline as text.
    pub fn to_text(&self) -> String {
        self.title.clone()
    }
}
