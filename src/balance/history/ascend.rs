//! vllm-ascend's expert map: a placement as JSON, by layer and device.
//!
//! ```text
//! {"moe_layer_count":1,"layer_list":[{"layer_id":0,"device_count":2,"device_list":[
//!     {"device_id":0,"device_expert":[0,1]},{"device_id":1,"device_expert":[2,0]}]}]}
//! ```
//!
//! The file is what `expert_map_path` reads and `expert_map_record_path` writes there. Layers and devices may stand in
//! any order; each has its number once.

use serde::{Deserialize, Serialize};

use super::{json_error, malformed};
use crate::balance::cluster::{Cluster, EMPTY, SLOTS_MAX};
use crate::balance::goal::{EXPERTS_MAX, LAYERS_MAX};
use crate::error::{in_range, Error, Result};

/// A placement as a file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePlacement {
    /// `[num_gpus]`: slots of each GPU in every layer, which make a [`Cluster`].
    pub slots_per_gpu: Vec<u32>,
    /// `[num_layers, num_slots]`
    pub slot_to_expert: Vec<u32>,
}

#[derive(Serialize, Deserialize)]
struct File {
    moe_layer_count: usize,
    layer_list: Vec<Layer>,
}

#[derive(Serialize, Deserialize)]
struct Layer {
    layer_id: usize,
    device_count: Option<usize>,
    device_list: Vec<Device>,
}

#[derive(Serialize, Deserialize)]
struct Device {
    device_id: usize,
    device_expert: Vec<u32>,
}

impl FilePlacement {
    /// A placement on the slots of a cluster, dead GPUs' too.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: a length that is not a multiple of the cluster's slots.
    pub fn new(cluster: &Cluster, slot_to_expert: &[u32]) -> Result<FilePlacement> {
        if slot_to_expert.len() % cluster.num_slots() != 0 {
            let range = format!("must be a multiple of num_slots = {}", cluster.num_slots());
            return Err(Error::argument(
                "history",
                "the length of slot_to_expert",
                slot_to_expert.len(),
                range,
            ));
        }
        let slots_per_gpu = (0..cluster.num_gpus()).map(|gpu| cluster.slots(gpu).len() as u32).collect();
        Ok(FilePlacement { slots_per_gpu, slot_to_expert: slot_to_expert.to_vec() })
    }

    /// Layers that it has a placement of; 0 without slots.
    pub fn num_layers(&self) -> usize {
        self.slot_to_expert.len() / self.num_slots().max(1)
    }

    /// One more than the highest expert that it names.
    pub fn num_experts(&self) -> usize {
        let experts = self.slot_to_expert.iter().filter(|&&expert| expert != EMPTY);
        experts.max().map_or(0, |&expert| expert as usize + 1)
    }

    /// Reads vllm-ascend's expert map. `O(text)`.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: not such a text; layers or devices whose numbers are not 0 to one less than their number;
    /// a device that has another number of experts in one layer than in layer 0; an expert of 65536 or more; more
    /// than 4096 layers or 2^20 slots of a layer.
    pub fn from_ascend(text: &str) -> Result<FilePlacement> {
        let mut file: File = serde_json::from_str(text).map_err(|error| json_error(1, &error))?;
        let num_layers = in_range("history", "moe_layer_count", file.moe_layer_count, 1..=LAYERS_MAX)?;
        check_count("layer_list", file.layer_list.len(), "moe_layer_count", num_layers)?;
        file.layer_list.sort_by_key(|layer| layer.layer_id);
        check_ids("layer_list", "layer_id", file.layer_list.iter().map(|layer| layer.layer_id))?;
        let mut slots_per_gpu: Vec<u32> = Vec::new();
        let mut slot_to_expert = Vec::new();
        for layer in &mut file.layer_list {
            let layer_name = format!("layer {}", layer.layer_id);
            let device_list = format!("{layer_name}'s device_list");
            if let Some(count) = layer.device_count {
                check_count(&device_list, layer.device_list.len(), "device_count", count)?;
            }
            layer.device_list.sort_by_key(|device| device.device_id);
            check_ids(&device_list, "device_id", layer.device_list.iter().map(|device| device.device_id))?;
            if layer.layer_id == 0 {
                let lengths = || layer.device_list.iter().map(|device| device.device_expert.len());
                in_range("history", "the number of slots", lengths().sum::<usize>(), 1..=SLOTS_MAX)?;
                slots_per_gpu = lengths().map(|len| len as u32).collect();
            }
            check_count(&device_list, layer.device_list.len(), "layer 0's", slots_per_gpu.len())?;
            for (device, &num_slots) in layer.device_list.iter().zip(&slots_per_gpu) {
                let list = format!("{layer_name}, device {}: device_expert", device.device_id);
                check_count(&list, device.device_expert.len(), "layer 0's", num_slots as usize)?;
                if let Some(expert) =
                    device.device_expert.iter().find(|&&expert| expert as usize >= EXPERTS_MAX)
                {
                    let range = format!("must be 0 to {}", EXPERTS_MAX - 1);
                    return Err(malformed(format_args!("{list} has {expert}, {range}")));
                }
                slot_to_expert.extend_from_slice(&device.device_expert);
            }
        }
        Ok(FilePlacement { slots_per_gpu, slot_to_expert })
    }

    /// vllm-ascend's expert map.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: no slot, slots that do not divide `slot_to_expert` or are more than 2^20, more than 4096
    /// layers, a slot that holds no expert, for which the file has no word.
    pub fn to_ascend(&self) -> Result<String> {
        let num_slots = in_range("history", "the number of slots", self.num_slots(), 1..=SLOTS_MAX)?;
        if self.slot_to_expert.len() % num_slots != 0 {
            let range = format!("must be a multiple of the {num_slots} slots");
            let len = self.slot_to_expert.len();
            return Err(Error::argument("history", "the length of slot_to_expert", len, range));
        }
        in_range("history", "the number of layers", self.num_layers(), 1..=LAYERS_MAX)?;
        if let Some(index) = self.slot_to_expert.iter().position(|&expert| expert as usize >= EXPERTS_MAX) {
            let argument = format!("slot_to_expert[layer {}, slot {}]", index / num_slots, index % num_slots);
            let range = format!("must be 0 to {}", EXPERTS_MAX - 1);
            return Err(Error::argument("history", argument, self.slot_to_expert[index], range));
        }
        let layers = self.slot_to_expert.chunks_exact(num_slots).enumerate().map(|(layer_id, experts)| {
            let mut rest = experts;
            let devices = self.slots_per_gpu.iter().enumerate().map(|(device_id, &slots)| {
                let (device_expert, others) = rest.split_at(slots as usize);
                rest = others;
                Device { device_id, device_expert: device_expert.to_vec() }
            });
            Layer { layer_id, device_count: Some(self.slots_per_gpu.len()), device_list: devices.collect() }
        });
        let file = File { moe_layer_count: self.num_layers(), layer_list: layers.collect() };
        serde_json::to_string(&file).map_err(malformed)
    }

    fn num_slots(&self) -> usize {
        self.slots_per_gpu.iter().fold(0, |sum, &slots| sum + slots as usize)
    }
}

fn check_count(list: &str, len: usize, of: &str, count: usize) -> Result<()> {
    if len == count {
        return Ok(());
    }
    Err(malformed(format_args!("{list} has {len} entries, must have {of} {count}")))
}

/// Whether sorted numbers are 0, 1, ...
fn check_ids(list: &str, field: &str, ids: impl Iterator<Item = usize>) -> Result<()> {
    match ids.enumerate().find(|&(want, id)| want != id) {
        None => Ok(()),
        Some((want, id)) => Err(malformed(format_args!(
            "{list} has {field} {id} as its number {want}, must have each from 0 once"
        ))),
    }
}
