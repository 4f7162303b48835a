//! Loads of GPUs: of any placement under any loads, and as a picture.
//!
//! ```c
//! // Draws what two placements of one layer make of the same loads: 8 experts in 12 slots on 4 GPUs.
//! #include <dualpipe.h>
//!
//! static dualpipe_status draw(const dualpipe_cluster *cluster, const int64_t before[12], const int64_t after[12],
//!                             const float loads[8], char *svg, size_t capacity, size_t *length) {
//!   double gpus[2][4];
//!   dualpipe_heat_map_panel panels[2] = {{"before", NULL, NULL, 4}, {"after", NULL, NULL, 4}};
//!   size_t count = 0;
//!   dualpipe_status status;
//!   panels[0].cluster = panels[1].cluster = cluster;
//!   panels[0].loads = gpus[0];
//!   panels[1].loads = gpus[1];
//!   status = dualpipe_expert_gpu_loads(cluster, 8, before, NULL, 12, loads, 8, gpus[0], 4, &count);
//!   if (status == DUALPIPE_OK)
//!     status = dualpipe_expert_gpu_loads(cluster, 8, after, NULL, 12, loads, 8, gpus[1], 4, &count);
//!   if (status == DUALPIPE_OK)
//!     status = dualpipe_heat_map(panels, 2, DUALPIPE_HEAT_MAP_SVG, svg, capacity, length);
//!   return status;
//! }
//! ```

use std::ffi::c_char;

use super::args::{self, Buffer};
use super::cluster::{dualpipe_cluster, read_cluster, read_slots};
use super::guard::call;
use super::status::{dualpipe_status, Failure, Outcome};
use crate::balance::heat_map::{heat_map, heat_map_text, Panel};
use crate::balance::{gpu_loads, node_loads, Cluster};

use dualpipe_heat_map_format::*;

/// The load of each GPU under a placement: num_layers rows of the cluster's num_gpus numbers, 0 on dead ones.
///
/// slot_to_expert: num_layers rows of the cluster's slots, -1 where there is no expert, in all num_slots. shares: NULL
/// for an equal split, or as many numbers. loads: num_layers rows of num_experts, in all num_loads, which says how
/// many layers there are. Buffers are filled as dualpipe.h says under "Buffers".
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also where a load would get lost: an expert that has load and no live
/// slot, or shares that do not sum to 1.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_gpu_loads(
    cluster: *const dualpipe_cluster,
    num_experts: u32,
    slot_to_expert: *const i64,
    shares: *const f64,
    num_slots: usize,
    loads: *const f32,
    num_loads: usize,
    gpu_loads: *mut f64,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_expert_gpu_loads", || {
        // SAFETY: the caller's.
        let cluster = unsafe { read_cluster("cluster", cluster) }?;
        args::in_range("num_experts", num_experts, 1..=1 << 16)?;
        // SAFETY: the caller's.
        let slots = unsafe { read_slots("slot_to_expert", slot_to_expert, "num_slots", num_slots) }?;
        let shares = match shares.is_null() {
            true => None,
            // SAFETY: the caller's.
            false => Some(unsafe { args::slice("shares", shares, "num_slots", num_slots) }?),
        };
        // SAFETY: the caller's.
        let loads = unsafe { args::slice("loads", loads, "num_loads", num_loads) }?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("gpu_loads", gpu_loads, capacity, "count", count) }?;
        let found = self::gpu_loads(&cluster, num_experts as usize, &slots, shares, loads)?;
        out.fill(found.len(), found)
    })
}

/// The load of each node, num_layers rows, from those of the GPUs: num_layers rows of the cluster's num_gpus numbers,
/// in all num_gpu_loads. Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_expert_node_loads(
    cluster: *const dualpipe_cluster,
    gpu_loads: *const f64,
    num_gpu_loads: usize,
    node_loads: *mut f64,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_expert_node_loads", || {
        // SAFETY: the caller's.
        let cluster = unsafe { read_cluster("cluster", cluster) }?;
        // SAFETY: the caller's.
        let loads = unsafe { args::slice("gpu_loads", gpu_loads, "num_gpu_loads", num_gpu_loads) }?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("node_loads", node_loads, capacity, "count", count) }?;
        if loads.is_empty() || loads.len() % cluster.num_gpus() != 0 {
            let how = format!("is {num_gpu_loads}, must be a multiple of num_gpus = {}", cluster.num_gpus());
            return Err(Failure::argument("num_gpu_loads", how));
        }
        let found = self::node_loads(&cluster, loads);
        out.fill(found.len(), found)
    })
}

/// What a heat map can be drawn as.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_heat_map_format {
    /// Text for a terminal, in at most 100 columns; the height of a block is a GPU's load.
    DUALPIPE_HEAT_MAP_TEXT = 1,
    /// A self-contained SVG; hovering over a row names its layer and its heaviest GPU.
    DUALPIPE_HEAT_MAP_SVG = 2,
}

/// The loads of one placement's GPUs.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_heat_map_panel {
    /// What it shows, in one line: UTF-8, NUL-terminated, of which at most 1023 bytes count.
    pub title: *const c_char,
    /// Whose nodes are separated by lines, and whose dead GPUs are grey.
    pub cluster: *const dualpipe_cluster,
    /// 1 to 4096 rows of the cluster's num_gpus numbers, as of dualpipe_expert_gpu_loads.
    pub loads: *const f64,
    /// How many numbers `loads` has.
    pub num_loads: usize,
}

/// Draws GPU loads: a row for each layer, a column for each GPU; the colour, or the height of a block, says how far
/// from the layer's mean. 1 to 16 panels beside each other (in text, below each other) have one scale, for before and
/// after.
///
/// format: a dualpipe_heat_map_format. Of more than 128 layers or 256 GPUs (in text 64 and about 80), a cell is the
/// heaviest of several, and the picture says of how many. UTF-8; a NUL ends it; the length is without the NUL.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_heat_map(
    panels: *const dualpipe_heat_map_panel,
    num_panels: usize,
    format: u32,
    text: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> dualpipe_status {
    call("dualpipe_heat_map", || {
        args::in_range("num_panels", num_panels, 1..=16)?;
        // SAFETY: the caller's.
        let given = unsafe { args::slice("panels", panels, "num_panels", num_panels) }?;
        let read = |(i, panel)| {
            // SAFETY: the caller's.
            unsafe { OwnPanel::read(&format!("panels[{i}]"), panel) }
        };
        let panels: Vec<OwnPanel<'_>> = given.iter().enumerate().map(read).collect::<Outcome<_>>()?;
        let formats = [DUALPIPE_HEAT_MAP_TEXT, DUALPIPE_HEAT_MAP_SVG];
        let format = args::one_of("format", format, formats.map(|format| (format as u32, format)))?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("text", text, capacity, "length", length) }?;
        let panels: Vec<Panel<'_>> = panels.iter().map(OwnPanel::panel).collect();
        out.fill_text(&match format {
            DUALPIPE_HEAT_MAP_TEXT => heat_map_text(&panels)?,
            DUALPIPE_HEAT_MAP_SVG => heat_map(&panels)?,
        })
    })
}

struct OwnPanel<'a> {
    title: String,
    cluster: Cluster,
    loads: &'a [f64],
}

impl<'a> OwnPanel<'a> {
    /// # Safety
    /// The caller of the entry point promises what dualpipe.h says under "Ownership".
    unsafe fn read(name: &str, panel: &dualpipe_heat_map_panel) -> Outcome<OwnPanel<'a>> {
        // SAFETY: as promised by the caller.
        let title = unsafe { args::text(&format!("{name}.title"), panel.title, TITLE_MAX) }?;
        // SAFETY: as promised by the caller.
        let cluster = unsafe { read_cluster(&format!("{name}.cluster"), panel.cluster) }?;
        let (loads, num_loads) = (format!("{name}.loads"), format!("{name}.num_loads"));
        // SAFETY: as promised by the caller.
        let loads = unsafe { args::slice(loads, panel.loads, num_loads, panel.num_loads) }?;
        Ok(OwnPanel { title, cluster, loads })
    }

    fn panel(&self) -> Panel<'_> {
        Panel { title: &self.title, cluster: &self.cluster, loads: self.loads }
    }
}

/// What counts of a title.
const TITLE_MAX: usize = 1023;
