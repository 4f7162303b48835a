//! The boxes of a rank: one per task, or one per run of pixels where there are too many tasks.

use std::collections::BTreeMap;

use super::layout::{Layout, LEFT};
use super::style::{class, is_dark, px, shade, text_width};
use crate::op::Task;
use crate::timeline::label::{parts, Kind, Labels, Part, Unit};
use crate::timeline::{Span, Timeline};

/// Numbers smaller than this help nobody.
const NUMBER_SIZE_MIN: f64 = 6.0;
/// Boxes narrower than this have no room for a line around them.
const OUTLINED: f64 = 3.0;

/// Draws the ranks of one timeline.
pub(super) struct Boxes<'a> {
    labels: Labels<'a>,
    layout: &'a Layout,
    /// In which the hover texts give times.
    unit: Unit,
}

/// A rectangle.
#[derive(Clone, Copy)]
struct Area {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

impl Boxes<'_> {
    pub(super) fn new<'a>(timeline: &'a Timeline, layout: &'a Layout) -> Boxes<'a> {
        Boxes { labels: Labels::new(&timeline.placement), layout, unit: Unit::of(timeline.makespan_ns()) }
    }

    /// One rank, its row starting at `y`.
    pub(super) fn draw(&self, spans: &[Span], y: f64, out: &mut String) {
        match self.layout.pixels {
            None => spans.iter().for_each(|span| self.task(span, y, out)),
            Some(pixels) => self.runs(spans, pixels, y, out),
        }
    }

    /// One task with its number and hover text.
    fn task(&self, span: &Span, y: f64, out: &mut String) {
        let x = self.layout.x(span.start_ns);
        let area = Area {
            x,
            y,
            // A task of no time is still to be seen.
            width: (self.layout.x(span.end_ns) - x).max(0.5),
            height: self.layout.height,
        };
        out.push_str(if area.width < OUTLINED { "<g class=\"task thin\">" } else { "<g class=\"task\">" });
        out.push_str(&format!("<title>{}</title>", self.hover(span)));
        match parts(span.task) {
            (part, None) => {
                self.rect(part, area, out);
                self.number(part, area, self.layout.number_size(), "", out);
            }
            (forward, Some(backward)) => {
                let (upper, lower) = area.halves();
                self.rect(forward, upper, out);
                self.rect(backward, lower, out);
                if area.width >= OUTLINED {
                    area.inset(0.75).draw("pair", out);
                }
                let size = self.layout.half_number_size();
                self.number(forward, upper, size, " half", out);
                self.number(backward, lower, size, " half", out);
            }
        }
        out.push_str("</g>\n");
    }

    fn hover(&self, span: &Span) -> String {
        let what = match parts(span.task) {
            (part, None) => part.description(),
            (forward, Some(backward)) => {
                format!("overlapped pair\n{}\n{}", forward.description(), backward.description())
            }
        };
        let time = |ns| self.unit.exact(ns);
        format!(
            "{what}\n{} to {} {unit} ({} {unit})",
            time(span.start_ns),
            time(span.end_ns),
            time(span.end_ns.saturating_sub(span.start_ns)),
            unit = self.unit.name
        )
    }

    fn rect(&self, part: Part, area: Area, out: &mut String) {
        let shade = shade(self.labels.local(part.copy));
        area.draw(&class(part.kind, shade), out);
    }

    /// The micro-batch, in a size that fits `area`; nothing if that is too small to read.
    fn number(&self, part: Part, area: Area, size_max: f64, class: &str, out: &mut String) {
        let number = match part.microbatch {
            Some(microbatch) => microbatch.to_string(),
            None => part.kind.letter().to_string(),
        };
        let fitting = (area.width - 3.0) / text_width(&number, 1.0);
        // Halves of a pixel, rounded down: few different sizes look calmer.
        let size = ((fitting * 2.0).floor() / 2.0).min(size_max);
        if size < NUMBER_SIZE_MIN {
            return;
        }
        let paint = match is_dark(shade(self.labels.local(part.copy))) {
            true => "light",
            false => "dark",
        };
        let font =
            if size < size_max { format!(" style=\"font-size:{}px\"", px(size)) } else { String::new() };
        out.push_str(&format!(
            "<text class=\"n {paint}{class}\"{font} x=\"{}\" y=\"{}\">{number}</text>",
            px(area.x + area.width / 2.0),
            px(area.y + area.height / 2.0 + 0.36 * size),
        ));
    }

    /// What is in the middle of each pixel, neighbours of the same colours as one; one path for each colour.
    fn runs(&self, spans: &[Span], pixels: usize, y: f64, out: &mut String) {
        let pixel_width = self.layout.width / pixels as f64;
        let mut paths: BTreeMap<(Kind, usize), String> = BTreeMap::new();
        let mut spans = spans.iter().peekable();
        let mut run: Option<(Colours, usize)> = None;
        for pixel in 0..=pixels {
            let middle = (2 * pixel as u128 + 1) * u128::from(self.layout.end_ns) / (2 * pixels as u128);
            while spans.next_if(|span| u128::from(span.end_ns) <= middle).is_some() {}
            let colours = spans
                .peek()
                .filter(|span| pixel < pixels && u128::from(span.start_ns) <= middle)
                .map(|span| self.colours(span.task));
            if run.map(|(colours, _)| colours) == colours {
                continue;
            }
            if let Some(((first, second), start)) = run {
                let area = Area {
                    x: LEFT + start as f64 * pixel_width,
                    y,
                    width: (pixel - start) as f64 * pixel_width,
                    height: self.layout.height,
                };
                let (upper, lower) = area.halves();
                let whole = if second.is_some() { upper } else { area };
                whole.trace(paths.entry(first).or_default());
                if let Some(second) = second {
                    lower.trace(paths.entry(second).or_default());
                }
            }
            run = colours.map(|colours| (colours, pixel));
        }
        for ((kind, shade), path) in paths {
            let class = class(kind, shade);
            out.push_str(&format!("<path class=\"{class}\" d=\"{path}\"/>\n"));
        }
    }

    fn colours(&self, task: Task) -> Colours {
        let colour = |part: Part| (part.kind, shade(self.labels.local(part.copy)));
        let (first, second) = parts(task);
        (colour(first), second.map(colour))
    }
}

/// Kind and shade of each part of a task.
type Colours = ((Kind, usize), Option<(Kind, usize)>);

impl Area {
    fn halves(self) -> (Area, Area) {
        let height = self.height / 2.0;
        let upper = Area { height, ..self };
        let y = self.y + height;
        (upper, Area { y, ..upper })
    }

    fn inset(self, by: f64) -> Area {
        Area { x: self.x + by, y: self.y + by, width: self.width - 2.0 * by, height: self.height - 2.0 * by }
    }

    fn trace(self, path: &mut String) {
        let (x, y, width, height) = (px(self.x), px(self.y), px(self.width), px(self.height));
        path.push_str(&format!("M{x} {y}h{width}v{height}h-{width}z"));
    }

    fn draw(self, class: &str, out: &mut String) {
        out.push_str(&format!(
            "<rect class=\"{class}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>",
            px(self.x),
            px(self.y),
            px(self.width),
            px(self.height)
        ));
    }
}
