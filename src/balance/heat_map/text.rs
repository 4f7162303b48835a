//! The picture for a terminal: no colours, no control characters, at most [`WIDTH`] columns.

use std::fmt::Write;

use super::grid::Grid;
use super::scale::{block, BLOCKS};
use super::Panel;

const WIDTH: usize = 100;
const ROWS_MAX: usize = 64;
/// What is left of a line beside the layer, its imbalance and two bars.
const CELLS_MAX: usize = WIDTH - 16;
/// A GPU that is dead or has no slots.
const GAP: char = 'x';

pub(super) fn draw(panels: &[Panel<'_>]) -> String {
    let mut out = String::new();
    let mut has_gaps = false;
    for panel in panels {
        let grid = Grid::new(panel, ROWS_MAX, CELLS_MAX);
        has_gaps |= grid.has_gaps();
        draw_panel(panel.title, &grid, &mut out);
        out.push('\n');
    }
    out.push_str("load / mean:");
    for (i, (block, from)) in BLOCKS.iter().enumerate() {
        match BLOCKS.get(i + 1) {
            Some((_, to)) if i == 0 => _ = write!(out, " {block} below {to}"),
            _ => _ = write!(out, "  {block} {from}"),
        }
    }
    out.push_str(if has_gaps { "  x dead or without slots\n" } else { "\n" });
    out
}

fn draw_panel(title: &str, grid: &Grid, out: &mut String) {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    out.extend(title.chars().take(WIDTH).map(printable));
    let _ = writeln!(out, "\n{}", grid.facts());
    // Nodes are separated where that fits.
    let separates = grid.num_columns + grid.node_starts.len() <= CELLS_MAX;
    for (row, cells) in grid.cells.chunks_exact(grid.num_columns).enumerate() {
        let _ = write!(out, "{:>5} │", grid.layers(row).start);
        for (column, cell) in cells.iter().enumerate() {
            if separates && grid.node_starts.binary_search(&column).is_ok() {
                out.push('│');
            }
            out.push(cell.map_or(GAP, block));
        }
        let _ = writeln!(out, "│ {:.3}", grid.peak(row).imbalance);
    }
}
