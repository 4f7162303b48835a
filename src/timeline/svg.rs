//! A timeline as a self-contained SVG.

use super::Timeline;

impl Timeline {
    /// The timeline as SVG.
    pub fn to_svg(&self) -> String {
        self.title.clone()
    }
}
