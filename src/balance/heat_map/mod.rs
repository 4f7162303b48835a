//! GPU loads as a picture: a row for each layer, a column for each GPU, the colour says how far from the mean.
//!
//! Panels beside each other share one scale, so that before and after, or one policy and another, can be compared:
//! `scale` has it. `grid` is what is drawn, `svg` and `text` draw it. The same loads give the same bytes.

mod grid;
mod scale;
mod svg;
mod text;

use super::cluster::Cluster;
use super::goal::{LAYERS_MAX, PLAN_SLOTS_MAX};
use crate::error::{in_range, Error, Result};

/// The loads of one placement's GPUs.
#[derive(Clone, Copy, Debug)]
pub struct Panel<'a> {
    /// What it shows, in one line; anything at all.
    pub title: &'a str,
    /// Whose nodes are separated by lines, and whose dead GPUs are grey.
    pub cluster: &'a Cluster,
    /// `[num_layers, num_gpus]`, as of [`gpu_loads`](super::gpu_loads()): finite, not negative; 1 to 4096 layers.
    pub loads: &'a [f64],
}

const PANELS_MAX: usize = 16;

/// The panels side by side as one self-contained SVG: a row for each layer, a column for each GPU, colours from blue
/// (less than the layer's mean) to brown (more), which people also see who do not see red or green. Lines separate
/// nodes, bars at the right are the imbalances of layers. Above each panel are the mean imbalance of its layers and
/// the worst; hovering over a row names its layer and the heaviest GPU.
///
/// Of more than 128 layers or 256 GPUs, a cell is the heaviest of several, and the panel says of how many: each of
/// the 1 to 16 panels has at most 32 768 cells. `O(num_layers * num_gpus)`.
///
/// # Errors
///
/// `InvalidArgument`: no panel or too many, a number of loads that does not fit, a load that is negative or not finite.
///
/// # Examples
///
/// ```
/// use dualpipe::balance::heat_map::Panel;
/// use dualpipe::balance::{heat_map, Cluster};
///
/// let cluster = Cluster::even(8, 4, 2)?;
/// let before = Panel { title: "before", cluster: &cluster, loads: &[4.0, 1.0, 1.0, 2.0] };
/// let after = Panel { title: "after", loads: &[2.0, 2.1, 1.9, 2.0], ..before };
/// let svg = heat_map(&[before, after])?;
/// assert!(svg.contains("mean imbalance 2.000"));
/// # Ok::<(), dualpipe::Error>(())
/// ```
pub fn heat_map(panels: &[Panel<'_>]) -> Result<String> {
    check(panels)?;
    Ok(svg::draw(panels))
}

/// The panels one below the other for a terminal, in at most 100 columns: the height of a block says how much a GPU
/// carries, half of it is the mean. Of more than 64 layers or about 80 GPUs, a block is the heaviest of several.
///
/// # Errors
///
/// As of [`heat_map`].
pub fn heat_map_text(panels: &[Panel<'_>]) -> Result<String> {
    check(panels)?;
    Ok(text::draw(panels))
}

fn check(panels: &[Panel<'_>]) -> Result<()> {
    in_range("heat_map", "the number of panels", panels.len(), 1..=PANELS_MAX)?;
    for (panel, &Panel { cluster, loads, .. }) in panels.iter().enumerate() {
        let num_gpus = cluster.num_gpus();
        if loads.len() % num_gpus != 0 {
            let range = format!("must be a multiple of num_gpus = {num_gpus}");
            return Err(Error::argument(
                "heat_map",
                format!("the length of panel {panel}'s loads"),
                loads.len(),
                range,
            ));
        }
        in_range("heat_map", &format!("panel {panel}'s num_layers"), loads.len() / num_gpus, 1..=LAYERS_MAX)?;
        let argument = format!("the length of panel {panel}'s loads");
        in_range("heat_map", &argument, loads.len(), 1..=PLAN_SLOTS_MAX)?;
        // A sum of GPUs' loads must not overflow.
        let is_load = |load: &f64| (0.0..=1e300).contains(load);
        if let Some(i) = loads.iter().position(|load| !is_load(load)) {
            return Err(Error::argument(
                "heat_map",
                format!("panel {panel}'s loads[layer {}, GPU {}]", i / num_gpus, i % num_gpus),
                format!("{:?}", loads[i]),
                "must be 0 to 1e300",
            ));
        }
    }
    Ok(())
}
