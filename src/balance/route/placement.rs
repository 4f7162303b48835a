//! A placement of one layer from anywhere, checked.

use std::fmt::Display;

use super::super::cluster::{Cluster, EMPTY};
use super::super::goal::EXPERTS_MAX;
use crate::error::{in_range, Error, Result};

/// Whether `slot_to_expert` can be the placement of a layer; experts may be missing.
pub(super) fn check_placement(cluster: &Cluster, num_experts: usize, slot_to_expert: &[u32]) -> Result<()> {
    in_range("route", "num_experts", num_experts, 1..=EXPERTS_MAX)?;
    let num_slots = cluster.num_slots();
    in_range("route", "the length of slot_to_expert", slot_to_expert.len(), num_slots..=num_slots)?;
    let is_wrong = |&expert: &u32| expert as usize >= num_experts && expert != EMPTY;
    if let Some(slot) = slot_to_expert.iter().position(is_wrong) {
        let range = format!("must be less than {num_experts}, or {EMPTY} for none");
        return Err(Error::argument("route", format!("slot_to_expert[{slot}]"), slot_to_expert[slot], range));
    }
    Ok(())
}

/// That something is asked of an expert that no live GPU has.
pub(super) fn no_replica(argument: String, value: impl Display) -> Error {
    Error::argument("route", argument, value, "must be 0: no live GPU has this expert")
}
