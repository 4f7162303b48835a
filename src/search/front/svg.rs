//! A front as SVG. Colours and fonts are attributes, without a style sheet or ids: several pictures in one page do not
//! disturb each other. What the lines and dots are can be told by their form as well as by their colour.

use std::fmt::Write;

use super::Front;
use crate::picture::{escape, hex};
use crate::search::show::Unit;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
/// Around the plot: left for times, right and above for little, below for memory and the legend.
const LEFT: f64 = 76.0;
const RIGHT: f64 = 28.0;
const TOP: f64 = 58.0;
const BOTTOM: f64 = 78.0;
/// Ticks of an axis, about.
const TICKS: f64 = 7.0;
/// Height of a name, about the width of its letters, and how many lines above or below its dot it may be.
const LINE: f64 = 13.0;
const LETTER: f64 = 6.8;
const LINES_MAX: i32 = 12;
const FONT: &str = "Helvetica Neue,Helvetica,Arial,DejaVu Sans,sans-serif";

const PLANNED: [u8; 3] = [0x1b, 0x4f, 0x91];
const BOUND: [u8; 3] = [0xd4, 0x66, 0x12];
const PUBLISHED: [u8; 3] = [0x10, 0x15, 0x1b];

pub(super) fn draw(front: &Front) -> String {
    let plot = Plot::of(front);
    let title = escape(&front.title);
    let mut body = String::new();
    plot.axes(&mut body);
    let lines = [plot.bounds(front), plot.plans(front)];
    plot.draw_bounds(&lines[0], &mut body);
    plot.draw_plans(&lines[1], front, &mut body);
    plot.draw_published(front, &lines, &mut body);
    legend(&mut body);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"{FONT}\" font-size=\"11\" fill=\"#1d2733\">\n\
         <title>Memory and time: {title}</title>\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"15\" font-weight=\"bold\">Memory and time: {title}</text>\n\
         {body}</svg>\n"
    )
}

/// Where values are on the paper.
struct Plot {
    memory: Scale,
    time: Scale,
}

/// One axis: from where to where, in its unit.
struct Scale {
    unit: Unit,
    from: f64,
    to: f64,
    /// On the paper.
    start: f64,
    end: f64,
}

impl Plot {
    fn of(front: &Front) -> Plot {
        let peaks = front.published.iter().map(|published| published.peak);
        let caps = || front.points.iter().map(|point| point.cap).chain(peaks.clone());
        let (least, most) = (caps().min().unwrap_or(0), caps().max().unwrap_or(0));
        let (fastest_ns, slowest_ns) = front.times();
        Plot {
            memory: Scale::new(front.memory_unit(), least, most, LEFT, WIDTH - RIGHT),
            time: Scale::new(Unit::of_times(slowest_ns), fastest_ns, slowest_ns, HEIGHT - BOTTOM, TOP),
        }
    }

    /// Lines and numbers of both axes, and what they are.
    fn axes(&self, out: &mut String) {
        let (right, bottom) = (px(WIDTH - RIGHT), px(HEIGHT - BOTTOM));
        out.push_str("<g fill=\"#5b6875\">\n");
        for (at, number) in self.time.ticks() {
            let _ = writeln!(
                out,
                "<path stroke=\"#e3e7ea\" d=\"M{LEFT} {at}H{right}\"/>\
                 <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{number}</text>",
                LEFT - 6.0,
                px(at + 4.0)
            );
        }
        for (at, number) in self.memory.ticks() {
            let _ = writeln!(
                out,
                "<path stroke=\"#e3e7ea\" d=\"M{at} {TOP}V{bottom}\"/>\
                 <text x=\"{at}\" y=\"{}\" text-anchor=\"middle\">{number}</text>",
                px(HEIGHT - BOTTOM + 16.0)
            );
        }
        let _ = writeln!(
            out,
            "<text x=\"{LEFT}\" y=\"{}\" font-size=\"12\">makespan in {}</text>\n\
             <text x=\"{right}\" y=\"{}\" font-size=\"12\" text-anchor=\"end\">most memory of a rank in {}</text>\n\
             </g>",
            px(TOP - 10.0),
            self.time.unit.name,
            px(HEIGHT - BOTTOM + 34.0),
            self.memory.unit.name
        );
        let _ =
            writeln!(out, "<path fill=\"none\" stroke=\"#1d2733\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/>");
    }

    /// Where a bound's line goes: it holds for its cap and for less memory, down to the cap before.
    fn bounds(&self, front: &Front) -> Vec<[f64; 2]> {
        let mut corners: Vec<[f64; 2]> = Vec::new();
        for point in &front.points {
            let (x, y) = (self.memory.at(point.cap), self.time.at(point.lower_bound_ns));
            let from = corners.last().map_or(LEFT, |corner| corner[0]);
            corners.extend([[from, y], [x, y]]);
        }
        corners
    }

    fn draw_bounds(&self, corners: &[[f64; 2]], out: &mut String) {
        let (colour, path) = (hex(BOUND), path(corners));
        let _ = writeln!(
            out,
            "<path fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"5 3\" d=\"{path}\"/>"
        );
    }

    /// Where the plans' line goes: each serves its cap and more memory, up to the next cap.
    fn plans(&self, front: &Front) -> Vec<[f64; 2]> {
        let mut corners: Vec<[f64; 2]> = Vec::new();
        for point in &front.points {
            let (x, y) = (self.memory.at(point.cap), self.time.at(point.makespan_ns));
            let before = corners.last().map(|corner| [x, corner[1]]);
            corners.extend(before.into_iter().chain([[x, y]]));
        }
        let end = corners.last().map(|corner| [px(WIDTH - RIGHT), corner[1]]);
        corners.extend(end);
        corners
    }

    fn draw_plans(&self, corners: &[[f64; 2]], front: &Front, out: &mut String) {
        let (colour, path, mut marks) = (hex(PLANNED), path(corners), String::new());
        for point in &front.points {
            let (x, y) = (self.memory.at(point.cap), self.time.at(point.makespan_ns));
            let (memory, time) = (&self.memory.unit, &self.time.unit);
            let _ = writeln!(
                marks,
                "<rect x=\"{}\" y=\"{}\" width=\"7\" height=\"7\" fill=\"{colour}\"><title>cap {}: {}, bound {}, \
                 from {}</title></rect>",
                px(x - 3.5),
                px(y - 3.5),
                memory.show_named(point.cap),
                time.show_named(point.makespan_ns),
                time.show_named(point.lower_bound_ns),
                escape(&point.started_from)
            );
        }
        let _ = writeln!(
            out,
            "<path fill=\"none\" stroke=\"{colour}\" stroke-width=\"2.2\" d=\"{path}\"/>\n{}",
            marks.trim_end()
        );
    }

    /// Dots with their names; those on the same spot together, and no name on another, on a line or on a dot.
    fn draw_published(&self, front: &Front, lines: &[Vec<[f64; 2]>], out: &mut String) {
        let colour = hex(PUBLISHED);
        let spots: Vec<_> = front
            .published
            .chunk_by(|a, b| (a.peak, a.makespan_ns) == (b.peak, b.makespan_ns))
            .map(|same| (self.memory.at(same[0].peak), self.time.at(same[0].makespan_ns), same))
            .collect();
        let of_lines = lines.iter().flat_map(|corners| corners.windows(2));
        let mut taken: Vec<Area> = of_lines.map(|ends| Area::around(ends[0], ends[1], 4.0)).collect();
        taken.extend(spots.iter().map(|&(x, y, _)| Area::around([x, y], [x, y], 6.0)));
        let names: Vec<(String, f64)> = spots
            .iter()
            .map(|(_, _, same)| {
                let names: Vec<&str> = same.iter().map(|published| published.name.as_str()).collect();
                let names = names.join(", ");
                (escape(&names), names.chars().count() as f64 * LETTER)
            })
            .collect();
        // First the names that have room beside their dots: no other comes between.
        let mut areas: Vec<Option<Area>> = vec![None; spots.len()];
        for lines in [1, 2 * LINES_MAX] {
            for ((area, &(x, y, _)), (_, width)) in areas.iter_mut().zip(&spots).zip(&names) {
                if area.is_none() {
                    *area = place([x, y], *width, lines, &taken);
                    taken.extend(*area);
                }
            }
        }
        for ((area, (name, width)), &(x, y, same)) in areas.iter().zip(&names).zip(&spots) {
            let area = area.unwrap_or(Area::around([x + 8.0, y], [x + 8.0 + width, y], LINE / 2.0));
            // Where a name is not beside its dot, a line leads to it.
            let (near, middle) = (x.clamp(area.left, area.right), (area.top + area.bottom) / 2.0);
            if (middle - y).abs() > 1.0 {
                let end = if middle < y { area.bottom } else { area.top };
                let _ = writeln!(out, "<path stroke=\"#9aa5b1\" d=\"M{x} {y}L{} {}\"/>", px(near), px(end));
            }
            let _ = writeln!(
                out,
                "<circle cx=\"{x}\" cy=\"{y}\" r=\"4\" fill=\"#fff\" stroke=\"{colour}\" stroke-width=\"1.8\">\
                 <title>{name}: {}, {}</title></circle>\n<text x=\"{}\" y=\"{}\">{name}</text>",
                self.memory.unit.show_named(same[0].peak),
                self.time.unit.show_named(same[0].makespan_ns),
                px(area.left),
                px(area.bottom - 2.5)
            );
        }
    }
}

/// A line from corner to corner.
fn path(corners: &[[f64; 2]]) -> String {
    let part = |(i, [x, y]): (usize, &[f64; 2])| format!("{}{x} {y}", if i == 0 { 'M' } else { 'L' });
    corners.iter().enumerate().map(part).collect()
}

/// A part of the paper.
#[derive(Clone, Copy)]
struct Area {
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
}

impl Area {
    /// So far around a line.
    fn around([x0, y0]: [f64; 2], [x1, y1]: [f64; 2], far: f64) -> Area {
        let (left, right) = (x0.min(x1) - far, x0.max(x1) + far);
        Area { left, right, top: y0.min(y1) - far, bottom: y0.max(y1) + far }
    }

    fn overlaps(&self, other: &Area) -> bool {
        self.left < other.right
            && other.left < self.right
            && self.top < other.bottom
            && other.top < self.bottom
    }

    fn is_in_the_plot(&self) -> bool {
        self.left >= LEFT && self.right <= WIDTH && self.top >= TOP && self.bottom <= HEIGHT - BOTTOM
    }
}

/// Where the name of a dot goes that is so wide: beside it, or in the nearest of so many lines where nothing is.
fn place([x, y]: [f64; 2], width: f64, lines: i32, taken: &[Area]) -> Option<Area> {
    let lines = (0..lines).map(|i| if i % 2 == 0 { i / 2 } else { -(i + 1) / 2 });
    let mut places = lines.flat_map(|line| {
        let middle = y + f64::from(line) * LINE;
        [x + 8.0, x - 8.0 - width, x - width / 2.0].map(|left| Area {
            left,
            right: left + width,
            top: middle - LINE / 2.0,
            bottom: middle + LINE / 2.0,
        })
    });
    places.find(|place| place.is_in_the_plot() && taken.iter().all(|other| !other.overlaps(place)))
}

impl Scale {
    /// A little longer than from `least` to `most` at both ends.
    fn new(unit: Unit, least: u64, most: u64, start: f64, end: f64) -> Scale {
        let (least, most) = (unit.value(least), unit.value(most));
        let margin = ((most - least) * 0.06).max(if most > least { 0.0 } else { 0.5 });
        Scale { unit, from: (least - margin).max(0.0), to: most + margin, start, end }
    }

    fn at(&self, value: u64) -> f64 {
        self.at_value(self.unit.value(value))
    }

    fn at_value(&self, value: f64) -> f64 {
        px(self.start + (value - self.from) / (self.to - self.from) * (self.end - self.start))
    }

    /// Round numbers and where they are.
    fn ticks(&self) -> Vec<(f64, String)> {
        let least = if self.unit == Unit::COUNT { 1.0 } else { 0.0 };
        let step = round_step(((self.to - self.from) / TICKS).max(least));
        let first = (self.from / step).ceil() as u64;
        let last = (self.to / step).floor() as u64;
        let decimals = [1.0, 0.1, 0.01, 0.001].iter().position(|&unit| step >= unit).unwrap_or(4);
        let tick = |i: u64| (self.at_value(i as f64 * step), format!("{:.decimals$}", i as f64 * step));
        (first..=last).map(tick).collect()
    }
}

/// The least of 1, 2, 5, 10 … and of 0.5, 0.2, 0.1 … that is at least `wanted`.
fn round_step(wanted: f64) -> f64 {
    let mut ten = 1.0;
    while ten > wanted && ten > 1e-9 {
        ten /= 10.0;
    }
    while ten * 10.0 <= wanted {
        ten *= 10.0;
    }
    [1.0, 2.0, 5.0].into_iter().map(|digit| digit * ten).find(|&step| step >= wanted).unwrap_or(10.0 * ten)
}

fn legend(out: &mut String) {
    let y = HEIGHT - 20.0;
    let _ = writeln!(
        out,
        "<g font-size=\"12\">\n<path stroke=\"{}\" stroke-width=\"2.2\" d=\"M{LEFT} {y}h26\"/>\
         <text x=\"{}\" y=\"{}\">best plan within the cap</text>",
        hex(PLANNED),
        LEFT + 32.0,
        y + 4.0
    );
    let _ = writeln!(
        out,
        "<path stroke=\"{}\" stroke-width=\"2\" stroke-dasharray=\"5 3\" d=\"M{} {y}h26\"/>\
         <text x=\"{}\" y=\"{}\">no schedule is faster</text>",
        hex(BOUND),
        LEFT + 212.0,
        LEFT + 244.0,
        y + 4.0
    );
    let _ = writeln!(
        out,
        "<circle cx=\"{}\" cy=\"{y}\" r=\"4\" fill=\"#fff\" stroke=\"{}\" stroke-width=\"1.8\"/>\
         <text x=\"{}\" y=\"{}\">published schedule</text>\n</g>",
        LEFT + 420.0,
        hex(PUBLISHED),
        LEFT + 432.0,
        y + 4.0
    );
}

/// A coordinate to a hundredth of a pixel.
fn px(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::eyes::{distance, lab, EYES};

    #[test]
    fn the_colours_differ_for_every_eye() {
        for eye in EYES {
            let all = [PLANNED, BOUND, PUBLISHED, [0xff; 3]];
            for (i, &a) in all.iter().enumerate() {
                for &b in &all[..i] {
                    let distance = distance(lab(a, eye), lab(b, eye));
                    assert!(distance > 12.0, "{} {}: {distance}", hex(a), hex(b));
                }
            }
        }
    }

    #[test]
    fn steps_of_an_axis_are_round() {
        for (wanted, step) in [(0.9, 1.0), (1.0, 1.0), (1.1, 2.0), (3.0, 5.0), (7.0, 10.0), (130.0, 200.0)] {
            assert_eq!(round_step(wanted), step);
        }
        assert!((round_step(0.03) - 0.05).abs() < 1e-12);
    }
}
