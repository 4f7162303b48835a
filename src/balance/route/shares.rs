//! Shares of an expert's tokens by loads that are no counts, the heaviest GPU being as light as can be.
//!
//! The loads become whole numbers, 2^44 for all together, and these are split exactly. A GPU's load errs by at most
//! half a unit for each of its experts, and the split by one.

use super::level::Leveller;
use super::links::Links;

const UNITS: f64 = (1u64 << 44) as f64;

/// An expert's load in units.
pub(in super::super) fn units(load: f64, per_load: f64) -> u64 {
    (load * per_load + 0.5) as u64
}

/// Units for a load of 1, if all loads add up to `total`.
pub(in super::super) fn per_load(total: f64) -> f64 {
    // A total so small that this is infinite is as good as none.
    Some(UNITS / total).filter(|units| units.is_finite()).unwrap_or(0.0)
}

/// Fills `shares`, `[num_slots]`, and returns the heaviest GPU's load. Who has a load is on a GPU.
pub(in super::super) fn share(
    links: &Links,
    leveller: &mut Leveller,
    loads: &[f64],
    shares: &mut [f64],
) -> f64 {
    let per_load = per_load(loads.iter().sum());
    let level = leveller.level(links, |expert| units(loads[expert], per_load));
    shares.fill(0.0);
    for (expert, &load) in loads.iter().enumerate() {
        let whole = units(load, per_load);
        for link in links.of(expert) {
            let slots = links.slots(link);
            let share = if whole == 0 {
                1.0 / links.slots_of(expert).len() as f64
            } else {
                leveller.carried[link] as f64 / whole as f64 / slots.len() as f64
            };
            slots.iter().for_each(|&slot| shares[slot as usize] = share);
        }
    }
    if per_load == 0.0 {
        return 0.0;
    }
    level.heaviest as f64 / per_load
}
