//! What is drawn: cells of layers and GPUs, in multiples of the layer's mean, merged where there are too many.

use std::ops::Range;

use super::Panel;

/// The cells of a panel. A cell of several GPUs and layers is the heaviest of them: what limits a step is the one GPU
/// that is late, which an average would hide.
pub(super) struct Grid {
    pub(super) num_layers: usize,
    pub(super) layers_per_row: usize,
    pub(super) gpus_per_column: usize,
    pub(super) num_columns: usize,
    /// `[num_rows, num_columns]`: load / mean of the layer; `None` where no GPU is alive and has slots.
    pub(super) cells: Vec<Option<f64>>,
    /// `[num_layers]`
    pub(super) peaks: Vec<Peak>,
    /// The columns that begin another node, if lines between nodes leave enough to be seen of the cells.
    pub(super) node_starts: Vec<usize>,
}

/// The heaviest GPU of a layer, the lowest of several.
#[derive(Clone, Copy)]
pub(super) struct Peak {
    pub(super) layer: usize,
    pub(super) gpu: usize,
    /// Its load / the mean: the layer's imbalance; 1 without load.
    pub(super) imbalance: f64,
}

impl Grid {
    pub(super) fn new(panel: &Panel<'_>, rows_max: usize, columns_max: usize) -> Grid {
        let num_gpus = panel.cluster.num_gpus();
        let num_layers = panel.loads.len() / num_gpus;
        let layers_per_row = num_layers.div_ceil(rows_max);
        let gpus_per_column = gpus_per_column(panel, columns_max);
        let num_columns = num_gpus.div_ceil(gpus_per_column);
        let mut cells = vec![None; num_layers.div_ceil(layers_per_row) * num_columns];
        let mut peaks = Vec::with_capacity(num_layers);
        for (layer, loads) in panel.loads.chunks_exact(num_gpus).enumerate() {
            let row = &mut cells[layer / layers_per_row * num_columns..][..num_columns];
            let mean = panel.cluster.live_gpus().map(|gpu| loads[gpu]).sum::<f64>()
                / panel.cluster.num_live_gpus() as f64;
            let mut peak: Option<Peak> = None;
            for gpu in panel.cluster.live_gpus() {
                // Without load, all GPUs are alike.
                let load = if mean > 0.0 { loads[gpu] / mean } else { 1.0 };
                let cell = &mut row[gpu / gpus_per_column];
                *cell = Some(cell.map_or(load, |cell: f64| cell.max(load)));
                if peak.is_none_or(|peak| load > peak.imbalance) {
                    peak = Some(Peak { layer, gpu, imbalance: load });
                }
            }
            // The heaviest is rounded below the mean where all are alike.
            peaks.extend(peak.map(|peak| Peak { imbalance: peak.imbalance.max(1.0), ..peak }));
        }
        let node_starts = node_starts(panel, gpus_per_column, num_columns);
        Grid { num_layers, layers_per_row, gpus_per_column, num_columns, cells, peaks, node_starts }
    }

    pub(super) fn num_rows(&self) -> usize {
        self.cells.len() / self.num_columns
    }

    /// The layers of a row.
    pub(super) fn layers(&self, row: usize) -> Range<usize> {
        row * self.layers_per_row..self.num_layers.min((row + 1) * self.layers_per_row)
    }

    /// The highest imbalance of a row's layers.
    pub(super) fn peak(&self, row: usize) -> Peak {
        highest(&self.peaks[self.layers(row)])
    }

    /// `mean imbalance 1.787, worst 3.210 (layer 12)`, and what a cell is.
    pub(super) fn facts(&self) -> String {
        let mean = self.peaks.iter().map(|peak| peak.imbalance).sum::<f64>() / self.num_layers as f64;
        let Peak { layer, imbalance, .. } = highest(&self.peaks);
        let cell = match (self.layers_per_row, self.gpus_per_column) {
            (1, 1) => String::new(),
            (1, gpus) => format!(" · a cell: the heaviest of {gpus} GPUs"),
            (layers, 1) => format!(" · a cell: the heaviest of {layers} layers"),
            (layers, gpus) => format!(" · a cell: the heaviest of {gpus} GPUs in {layers} layers"),
        };
        format!("mean imbalance {mean:.3}, worst {imbalance:.3} (layer {layer}){cell}")
    }

    /// Whether some GPU takes no part.
    pub(super) fn has_gaps(&self) -> bool {
        self.cells.contains(&None)
    }
}

/// The first of the highest; of at least one.
fn highest(peaks: &[Peak]) -> Peak {
    peaks
        .iter()
        .skip(1)
        .fold(peaks[0], |best, &peak| if peak.imbalance > best.imbalance { peak } else { best })
}

/// As few GPUs as fit, or up to twice as many if then no cell has parts of several nodes.
fn gpus_per_column(panel: &Panel<'_>, columns_max: usize) -> usize {
    let fitting = panel.cluster.num_gpus().div_ceil(columns_max);
    let nodes = panel.cluster.node_of_gpu().chunk_by(|a, b| a == b);
    let largest = nodes.map(<[u32]>::len).max().unwrap_or(1);
    let is_aligned = |gpus: &usize| gpus % largest == 0 || largest % gpus == 0;
    (fitting..2 * fitting).find(is_aligned).unwrap_or(fitting)
}

fn node_starts(panel: &Panel<'_>, gpus_per_column: usize, num_columns: usize) -> Vec<usize> {
    let node_of_gpu = panel.cluster.node_of_gpu();
    let starts_node = |column: &usize| {
        let gpu = column * gpus_per_column;
        node_of_gpu[gpu - 1] != node_of_gpu[gpu]
    };
    let starts: Vec<usize> = (1..num_columns).filter(starts_node).collect();
    if starts.len() * 2 > num_columns {
        return Vec::new();
    }
    starts
}
