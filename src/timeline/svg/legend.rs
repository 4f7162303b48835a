//! What the colours mean: only those that occur.

use std::collections::BTreeSet;

use super::layout::MARGIN;
use super::style::{class, px, shade, text_width};
use crate::picture::escape;
use crate::timeline::label::{parts, Kind, Labels};
use crate::timeline::Timeline;

/// Of a line of entries.
const PITCH: f64 = 24.0;
/// Of a colour sample.
const SAMPLE: (f64, f64) = (20.0, 14.0);

/// Draws the legend from `y` down, in lines of `width`; returns where it ends.
pub(super) fn draw(timelines: &[&Timeline], width: f64, y: f64, out: &mut String) -> f64 {
    let (mut x, mut y) = (MARGIN, y);
    for entry in entries(timelines) {
        if x > MARGIN && x + entry.width() > width - MARGIN {
            (x, y) = (MARGIN, y + PITCH);
        }
        entry.draw(x, y, out);
        x += entry.width();
    }
    y + PITCH
}

/// A few colour samples side by side and what they mean.
struct Entry {
    /// Classes of a sample's upper and lower half.
    samples: Vec<(String, Option<String>)>,
    text: String,
}

impl Entry {
    fn width(&self) -> f64 {
        self.samples.len() as f64 * (SAMPLE.0 + 2.0) + text_width(&self.text, 12.0) + 20.0
    }

    fn draw(&self, x: f64, y: f64, out: &mut String) {
        let mut x = x;
        let rect = |class: &str, x: f64, y: f64, height: f64, out: &mut String| {
            out.push_str(&format!(
                "<rect class=\"{class}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>",
                px(x),
                px(y),
                px(SAMPLE.0),
                px(height)
            ));
        };
        out.push_str("<g class=\"key\">");
        for (upper, lower) in &self.samples {
            rect(upper, x, y, SAMPLE.1, out);
            if let Some(lower) = lower {
                rect(lower, x, y + SAMPLE.1 / 2.0, SAMPLE.1 / 2.0, out);
                rect("pair", x, y, SAMPLE.1, out);
            }
            x += SAMPLE.0 + 2.0;
        }
        out.push_str(&format!(
            "<text class=\"legend\" x=\"{}\" y=\"{}\">{}</text></g>\n",
            px(x + 4.0),
            px(y + SAMPLE.1 - 2.5),
            escape(&self.text)
        ));
    }
}

fn entries(timelines: &[&Timeline]) -> Vec<Entry> {
    let mut colours: BTreeSet<(Kind, usize)> = BTreeSet::new();
    let mut pairs: BTreeSet<(usize, usize)> = BTreeSet::new();
    let mut notes: BTreeSet<&str> = BTreeSet::new();
    for timeline in timelines {
        let labels = Labels::new(&timeline.placement);
        let shade = |part: crate::timeline::label::Part| shade(labels.local(part.copy));
        for span in timeline.spans.iter().flatten() {
            let (first, second) = parts(span.task);
            colours.insert((first.kind, shade(first)));
            if let Some(second) = second {
                colours.insert((second.kind, shade(second)));
                pairs.insert((shade(first), shade(second)));
            }
        }
        notes.extend(note(timeline));
    }
    let mut entries = Vec::new();
    for kind in Kind::ALL {
        let of_kind = colours.range((kind, 0)..=(kind, usize::MAX));
        let samples: Vec<_> = of_kind.map(|&(kind, shade)| (class(kind, shade), None)).collect();
        if !samples.is_empty() {
            let text = match kind {
                Kind::R => kind.name().to_owned(),
                _ => format!("{}  {}", kind.letter(), kind.name()),
            };
            entries.push(Entry { samples, text });
        }
    }
    if !pairs.is_empty() {
        let pair = |&(f, b)| (class(Kind::F, f), Some(class(Kind::B, b)));
        entries.push(Entry {
            samples: pairs.iter().take(2).map(pair).collect(),
            text: "F&B  overlapped pair".to_owned(),
        });
    }
    entries.push(Entry { samples: vec![("idle".to_owned(), None)], text: "idle (bubble)".to_owned() });
    entries.extend(notes.into_iter().map(|note| Entry { samples: Vec::new(), text: note.to_owned() }));
    entries
}

/// What the shades of a timeline mean.
fn note(timeline: &Timeline) -> Option<&'static str> {
    let placement = &timeline.placement;
    match (placement.num_directions(), placement.num_copies() / placement.num_ranks()) {
        (2, 2) => Some("light: direction 0, dark: direction 1"),
        (_, 2) => Some("light: first stage of the rank, dark: second"),
        (_, 0 | 1) => None,
        _ => Some("light to dark: first to last stage of the rank"),
    }
}
