//! A timeline as a self-contained SVG: ranks from top to bottom as in the published figures, time from left to
//! right.
//!
//! Colour says what a task does, its shade which of the rank's parameter copies it uses; the number is the
//! micro-batch. An overlapped pair is one frame, its forward above its backward. What a rank does not fill is
//! bubble. Hovering over a box names it, with its start and end.
//!
//! A picture of more than 50 000 tasks would be slow to show. It is drawn at the resolution of its pixels instead:
//! neighbours of one colour are merged, what is between two pixels is left out, and there are neither numbers nor
//! hover texts; no picture has more than about 200 000 boxes.

mod boxes;
mod layout;
mod legend;
mod style;

use self::boxes::Boxes;
use self::layout::{Layout, LEFT, MARGIN, RIGHT};
use self::style::{px, text_width};
use super::label::{percent, time, Unit};
use super::Timeline;
use crate::ids::Rank;
use crate::picture::escape;

impl Timeline {
    /// The timeline as SVG. The same timeline gives the same bytes; [`svg`](self) says what is to be seen.
    pub fn to_svg(&self) -> String {
        compare(&[self])
    }
}

/// Several timelines, one above the other on one scale of time: say, a step predicted and measured.
pub fn compare(timelines: &[&Timeline]) -> String {
    let layout = Layout::of(timelines);
    let mut body = String::new();
    let mut y = MARGIN;
    for timeline in timelines {
        y = panel(timeline, &layout, y, &mut body);
    }
    let width = LEFT + layout.width + RIGHT;
    let height = legend::draw(timelines, width, y, &mut body) + MARGIN;
    let titles: Vec<&str> = timelines.iter().map(|t| t.title.as_str()).collect();
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\">\n\
         <title>{title}</title>\n<style>{css}</style>\n\
         <rect class=\"paper\" width=\"{w}\" height=\"{h}\"/>\n{body}</svg>\n",
        w = px(width),
        h = px(height),
        title = escape(&titles.join(" / ")),
        css = style::css(layout.number_size(), layout.half_number_size()),
    )
}

/// One timeline from `y` down; returns where it ends.
fn panel(timeline: &Timeline, layout: &Layout, y: f64, out: &mut String) -> f64 {
    let right = LEFT + layout.width;
    let facts = format!(
        "{} · makespan {} · bubble {}",
        timeline.source.name(),
        time(timeline.makespan_ns()),
        percent(timeline.bubble_share())
    );
    let title = shortened(&timeline.title, (right - MARGIN) / text_width("n", 17.0));
    let rows = y + 56.0;
    out.push_str(&format!(
        "<text class=\"title\" x=\"{x}\" y=\"{}\">{}</text>\n<text class=\"facts\" x=\"{x}\" y=\"{}\">{}</text>\n",
        px(y + 17.0),
        escape(&title),
        px(y + 37.0),
        escape(&facts),
        x = px(MARGIN),
    ));
    if !timeline.spans.is_empty() {
        out.push_str(&format!(
            "<text class=\"small\" x=\"{}\" y=\"{}\">idle</text>\n",
            px(right + 8.0),
            px(rows - 6.0)
        ));
    }
    let height = layout.pitch * timeline.spans.len() as f64;
    idle_bands(timeline, layout, rows, out);
    axis(layout, rows, height, out);
    let boxes = Boxes::new(timeline, layout);
    for (rank, spans) in timeline.spans.iter().enumerate() {
        boxes.draw(spans, rows + layout.pitch * rank as f64, out);
    }
    rows + height + 40.0
}

/// The background of each rank, on which whatever stays visible is bubble.
fn idle_bands(timeline: &Timeline, layout: &Layout, rows: f64, out: &mut String) {
    let makespan_ns = timeline.makespan_ns();
    let width = layout.x(makespan_ns) - LEFT;
    for rank in 0..timeline.spans.len() {
        let top = rows + layout.pitch * rank as f64;
        let idle_ns = timeline.idle_ns(Rank::from_index(rank));
        let share = match makespan_ns {
            0 => 0.0,
            _ => idle_ns as f64 / makespan_ns as f64,
        };
        out.push_str(&format!(
            "<rect class=\"idle\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\">\
             <title>rank {rank}: idle {} of {}</title></rect>\n",
            px(LEFT),
            px(top),
            px(width),
            px(layout.height),
            time(idle_ns),
            time(makespan_ns),
        ));
        if layout.names_rank(rank) {
            let base = px(top + layout.height / 2.0 + 4.0);
            out.push_str(&format!(
                "<text class=\"rank\" x=\"{}\" y=\"{base}\">rank {rank}</text>\n\
                 <text class=\"small\" x=\"{}\" y=\"{base}\">{}</text>\n",
                px(LEFT - 8.0),
                px(LEFT + layout.width + 8.0),
                percent(share),
            ));
        }
    }
}

/// Ticks under the rows, a line through them at each.
fn axis(layout: &Layout, rows: f64, height: f64, out: &mut String) {
    let unit = Unit::of(layout.end_ns);
    let bottom = rows + height;
    for ns in layout.ticks() {
        let x = px(layout.x(ns));
        out.push_str(&format!(
            "<path class=\"tick\" d=\"M{x} {}V{}\"/>\n<text class=\"time\" x=\"{x}\" y=\"{}\">{}</text>\n",
            px(rows - 3.0),
            px(bottom + 3.0),
            px(bottom + 16.0),
            unit.exact(ns),
        ));
    }
    out.push_str(&format!(
        "<text class=\"rank\" x=\"{}\" y=\"{}\">{}</text>\n",
        px(LEFT - 8.0),
        px(bottom + 16.0),
        unit.name,
    ));
}

/// At most about `chars` characters of a title; the whole one is the document's.
fn shortened(title: &str, chars: f64) -> String {
    let chars = chars as usize;
    if title.chars().count() <= chars {
        return title.to_owned();
    }
    let mut short: String = title.chars().take(chars.saturating_sub(1)).collect();
    short.push('…');
    short
}
