//! A schedule as text: one line per rank, with the tokens of its ops.

use super::Schedule;

impl Schedule {
    /// `RANK| TOKEN TOKEN …` for each rank, such as `1| 1F0 2f0 1F1 …`; the last line ends with a newline too.
    pub fn to_text(&self) -> String {
        let width = (self.num_ranks() - 1).to_string().len();
        let mut text = String::new();
        for (rank, order) in self.orders().iter().enumerate() {
            text += &format!("{rank:width$}|");
            for op in order {
                text += &format!(" {op}");
            }
            text.push('\n');
        }
        text
    }
}
