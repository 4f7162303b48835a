//! The picture as SVG. Colours and fonts are attributes, without a style sheet or ids: several pictures in one page do
//! not disturb each other. The paper is white, whatever the page is.

use std::fmt::Write;

use super::grid::Grid;
use super::scale::{colour, ABOVE, BELOW, COLOURS, GAP, MEAN};
use super::Panel;
use crate::picture::{escape, hex};

const ROWS_MAX: usize = 128;
const COLUMNS_MAX: usize = 256;
/// White space around the picture and between panels.
const MARGIN: f64 = 20.0;
/// Room left of the cells, for layers.
const LEFT: f64 = 44.0;
/// Room above the cells, for the title and the facts.
const TOP: f64 = 62.0;
/// Room below the cells, for GPUs.
const BOTTOM: f64 = 38.0;
/// The longest bar, and its distance from the cells.
const BAR: f64 = 72.0;
const BAR_GAP: f64 = 8.0;
/// What the longest bar stands for at least: rounding errors are not to look like imbalances.
const BAR_SCALE_MIN: f64 = 1.02;
/// Of the largest panel, about.
const CELLS_WIDTH: f64 = 560.0;
const CELLS_HEIGHT: f64 = 580.0;
/// A legend's colour.
const SAMPLE: f64 = 34.0;
const FONT: &str = "Helvetica Neue,Helvetica,Arial,DejaVu Sans,sans-serif";

/// A panel with the size of its cells.
struct Frame<'a> {
    title: &'a str,
    grid: Grid,
    cell_width: f64,
    cell_height: f64,
    /// The imbalance that the longest bar stands for.
    imbalance_max: f64,
}

pub(super) fn draw(panels: &[Panel<'_>]) -> String {
    let mut frames: Vec<Frame<'_>> = panels.iter().map(Frame::new).collect();
    let peaks = frames.iter().flat_map(|frame| &frame.grid.peaks);
    let imbalance_max = peaks.map(|peak| peak.imbalance).fold(BAR_SCALE_MIN, f64::max);
    frames.iter_mut().for_each(|frame| frame.imbalance_max = imbalance_max);

    let per_line = match frames.len() {
        n @ 0..=3 => n,
        4 => 2,
        _ => 3,
    };
    let pitch = frames.iter().map(Frame::width).fold(0.0, f64::max) + MARGIN;
    // The legend is as wide as two small panels.
    let width = (pitch * per_line as f64 + MARGIN).max(COLOURS.len() as f64 * SAMPLE + 2.0 * MARGIN + 190.0);
    let mut body = String::new();
    let mut y = MARGIN;
    for line in frames.chunks(per_line) {
        for (i, frame) in line.iter().enumerate() {
            frame.draw(MARGIN + pitch * i as f64, y, &mut body);
        }
        y += line.iter().map(Frame::height).fold(0.0, f64::max);
    }
    legend(MARGIN, y + 4.0, frames.iter().any(|frame| frame.grid.has_gaps()), &mut body);
    let titles: Vec<String> = panels.iter().map(|panel| escape(panel.title)).collect();
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\" \
         font-family=\"{FONT}\" font-size=\"11\" fill=\"#1d2733\">\n<title>{titles}</title>\n\
         <rect width=\"{w}\" height=\"{h}\" fill=\"#fff\"/>\n{body}</svg>\n",
        w = px(width),
        h = px(y + 62.0),
        titles = titles.join(" / "),
    )
}

impl<'a> Frame<'a> {
    fn new(panel: &Panel<'a>) -> Frame<'a> {
        let grid = Grid::new(panel, ROWS_MAX, COLUMNS_MAX);
        // Halves of a pixel keep the edges sharp.
        let size = |room: f64, cells: usize, least: f64| {
            ((2.0 * room / cells as f64).floor() / 2.0).clamp(least, 18.0)
        };
        Frame {
            title: panel.title,
            cell_width: size(CELLS_WIDTH, grid.num_columns, 2.0),
            cell_height: size(CELLS_HEIGHT, grid.num_rows(), 4.0),
            grid,
            imbalance_max: BAR_SCALE_MIN,
        }
    }

    fn cells_width(&self) -> f64 {
        self.cell_width * self.grid.num_columns as f64
    }

    fn cells_height(&self) -> f64 {
        self.cell_height * self.grid.num_rows() as f64
    }

    /// Wide enough for the facts, which are what is longest.
    fn width(&self) -> f64 {
        let facts = self.grid.facts().chars().count() as f64 * 6.6;
        (LEFT + self.cells_width() + BAR_GAP + BAR).max(facts)
    }

    fn height(&self) -> f64 {
        TOP + self.cells_height() + BOTTOM
    }

    /// Everything of the panel, its corner at `(x, y)`.
    fn draw(&self, x: f64, y: f64, out: &mut String) {
        // Bold letters are about 8.5 pixels wide.
        let title = escape(&shortened(self.title, (self.width() / 8.5) as usize));
        let _ = writeln!(
            out,
            "<g transform=\"translate({} {})\">\n<text y=\"14\" font-size=\"15\" font-weight=\"bold\">{title}</text>\n\
             <text y=\"33\" font-size=\"12\" fill=\"#4b5866\">{}</text>",
            px(x),
            px(y),
            self.grid.facts(),
        );
        self.numbers(out);
        let _ = writeln!(out, "<g transform=\"translate({} {})\">", px(LEFT), px(TOP));
        self.cells(out);
        self.nodes(out);
        self.bars(out);
        self.hover(out);
        out.push_str("</g>\n</g>\n");
    }

    /// Numbers of layers and GPUs, as many as there is room for.
    fn numbers(&self, out: &mut String) {
        let grid = &self.grid;
        out.push_str("<g fill=\"#5b6875\">\n");
        let _ = writeln!(
            out,
            "<g text-anchor=\"end\">\n<text x=\"{}\" y=\"{}\">layer</text>",
            px(LEFT - 5.0),
            px(TOP - 5.0)
        );
        let step = every(14.0 / self.cell_height);
        for row in (0..grid.num_rows()).step_by(step) {
            let y = TOP + (row as f64 + 0.5) * self.cell_height + 4.0;
            let _ = writeln!(
                out,
                "<text x=\"{}\" y=\"{}\">{}</text>",
                px(LEFT - 5.0),
                px(y),
                row * grid.layers_per_row
            );
        }
        out.push_str("</g>\n<g text-anchor=\"middle\">\n");
        let y = TOP + self.cells_height() + 14.0;
        let _ =
            writeln!(out, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">GPU</text>", px(LEFT - 5.0), px(y));
        let step = every(32.0 / self.cell_width);
        for column in (0..grid.num_columns).step_by(step) {
            let x = LEFT + (column as f64 + 0.5) * self.cell_width;
            let _ = writeln!(
                out,
                "<text x=\"{}\" y=\"{}\">{}</text>",
                px(x),
                px(y),
                column * grid.gpus_per_column
            );
        }
        let x = LEFT + self.cells_width() + BAR_GAP;
        let _ = writeln!(
            out,
            "</g>\n<text x=\"{}\" y=\"{}\">imbalance</text>\n<text x=\"{}\" y=\"{}\">1</text>\n\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{:.2}</text>\n</g>",
            px(x),
            px(TOP - 5.0),
            px(x),
            px(y),
            px(x + BAR),
            px(y),
            self.imbalance_max,
        );
    }

    /// In units of cells: one path for each colour, neighbours in a row merged.
    fn cells(&self, out: &mut String) {
        let (columns, rows) = (self.grid.num_columns, self.grid.num_rows());
        let mut paths = vec![String::new(); COLOURS.len() + 1];
        for (row, cells) in self.grid.cells.chunks_exact(columns).enumerate() {
            let mut column = 0;
            for run in cells.chunk_by(|&a, &b| index(a) == index(b)) {
                // The mean is the background.
                if index(run[0]) != MEAN {
                    let _ = write!(paths[index(run[0])], "M{column} {row}h{len}v1h-{len}z", len = run.len());
                }
                column += run.len();
            }
        }
        let _ = writeln!(
            out,
            "<g transform=\"scale({} {})\" shape-rendering=\"crispEdges\">\n\
             <rect width=\"{columns}\" height=\"{rows}\" fill=\"{}\"/>",
            px(self.cell_width),
            px(self.cell_height),
            hex(COLOURS[MEAN]),
        );
        let colours = COLOURS.iter().chain([&GAP]);
        for (path, &colour) in paths.iter().zip(colours).filter(|(path, _)| !path.is_empty()) {
            let _ = writeln!(out, "<path fill=\"{}\" d=\"{path}\"/>", hex(colour));
        }
        out.push_str("</g>\n");
    }

    /// A frame, and a line before each node but the first.
    fn nodes(&self, out: &mut String) {
        let (width, height) = (px(self.cells_width()), px(self.cells_height()));
        let mut path = format!("M0 0H{width}V{height}H0z");
        for &column in &self.grid.node_starts {
            let _ = write!(path, "M{} 0V{height}", px(column as f64 * self.cell_width));
        }
        let _ = writeln!(out, "<path fill=\"none\" stroke=\"#1d2733\" stroke-width=\".7\" d=\"{path}\"/>");
    }

    /// The imbalance of each row, from 1 to the highest of all panels.
    fn bars(&self, out: &mut String) {
        let x = self.cells_width() + BAR_GAP;
        let mut path = String::new();
        for row in 0..self.grid.num_rows() {
            let excess = self.grid.peak(row).imbalance - 1.0;
            if excess > 0.0 {
                let length = px(BAR * excess / (self.imbalance_max - 1.0));
                let height = px(0.8 * self.cell_height);
                let y = px((row as f64 + 0.1) * self.cell_height);
                let _ = write!(path, "M{} {y}h{length}v{height}h-{length}z", px(x));
            }
        }
        let _ = writeln!(out, "<path fill=\"#5b6875\" d=\"{path}\"/>");
        let height = px(self.cells_height());
        let _ = writeln!(out, "<path stroke=\"#5b6875\" stroke-width=\".7\" d=\"M{} 0V{height}\"/>", px(x));
    }

    /// What a row is, under the mouse.
    fn hover(&self, out: &mut String) {
        out.push_str("<g fill=\"none\" pointer-events=\"all\">\n");
        let width = px(self.cells_width() + BAR_GAP + BAR);
        for row in 0..self.grid.num_rows() {
            let (layers, peak) = (self.grid.layers(row), self.grid.peak(row));
            let what = match layers.len() {
                1 => format!("layer {}", peak.layer),
                _ => format!("layers {} to {}, worst {}", layers.start, layers.end - 1, peak.layer),
            };
            let _ = writeln!(
                out,
                "<rect y=\"{}\" width=\"{width}\" height=\"{}\">\
                 <title>{what}: imbalance {:.4}, heaviest GPU {}</title></rect>",
                px(row as f64 * self.cell_height),
                px(self.cell_height),
                peak.imbalance,
                peak.gpu,
            );
        }
        out.push_str("</g>\n");
    }
}

/// The colour of a cell; a gap's is behind those of loads.
fn index(cell: Option<f64>) -> usize {
    cell.map_or(COLOURS.len(), colour)
}

/// The colours with the loads between them.
fn legend(x: f64, y: f64, has_gaps: bool, out: &mut String) {
    let _ = writeln!(
        out,
        "<g transform=\"translate({} {})\">\n<text y=\"10\" font-size=\"12\">load / mean of the layer</text>",
        px(x),
        px(y)
    );
    for (i, &colour) in COLOURS.iter().enumerate() {
        swatch(i as f64 * SAMPLE, colour, out);
    }
    out.push_str("<g text-anchor=\"middle\" fill=\"#5b6875\">\n");
    for (i, edge) in BELOW.iter().rev().chain(&ABOVE).enumerate() {
        let _ = writeln!(out, "<text x=\"{}\" y=\"43\">{edge}</text>", px((i + 1) as f64 * SAMPLE));
    }
    out.push_str("</g>\n");
    if has_gaps {
        let x = (COLOURS.len() as f64 + 0.5) * SAMPLE;
        swatch(x, GAP, out);
        let _ = writeln!(out, "<text x=\"{}\" y=\"27\">dead or without slots</text>", px(x + SAMPLE + 6.0));
    }
    out.push_str("</g>\n");
}

fn swatch(x: f64, colour: [u8; 3], out: &mut String) {
    let _ = writeln!(
        out,
        "<rect x=\"{}\" y=\"16\" width=\"{}\" height=\"14\" fill=\"{}\" stroke=\"#8a939c\" stroke-width=\".5\"/>",
        px(x),
        px(SAMPLE),
        hex(colour)
    );
}

/// The least of 1, 2, 4, 8 … that is at least `wanted`.
fn every(wanted: f64) -> usize {
    (wanted.ceil() as usize).next_power_of_two()
}

/// At most about `chars` characters of a title; the whole one is in the document's.
fn shortened(title: &str, chars: usize) -> String {
    if title.chars().count() <= chars {
        return title.to_owned();
    }
    title.chars().take(chars.saturating_sub(1)).chain(['…']).collect()
}

/// A coordinate to a hundredth of a pixel.
fn px(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
