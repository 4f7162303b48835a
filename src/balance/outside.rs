//! A plan made of a placement from anywhere: an engine's, a file's, another planner's.

use super::finish::Finisher;
use super::layers::place_layers;
use super::verify::{verify, Severity, Unverified};
use super::{Cluster, ExpertPlan, Goal, GroupRule, Loads, Options, Split};
use crate::error::{in_range, Error, ErrorKind, Result};

impl ExpertPlan {
    /// A plan whose experts are where `slot_to_expert`, `[num_layers, num_slots]`, has them, weighed under `loads`, if
    /// there are any. `shares`, likewise, are needed for a weighted split, and refused for an equal one. Of `goal`, its
    /// groups and what is to be survived need not be kept: [`verify`] says whether they are.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: sizes that do not fit; a placement by which tokens would be lost, with the first place where.
    pub fn from_slots(
        cluster: &Cluster,
        goal: &Goal,
        slot_to_expert: &[u32],
        shares: Option<&[f64]>,
        loads: Option<&Loads<'_>>,
    ) -> Result<ExpertPlan> {
        goal.check(cluster)?;
        loads.map_or(Ok(()), |loads| loads.check_sizes(goal))?;
        let is_weighted = goal.split == Split::Weighted;
        let num_shares = if is_weighted { slot_to_expert.len() } else { 0 };
        in_range("balance", "the number of shares", shares.map_or(0, <[f64]>::len), num_shares..=num_shares)?;
        let shares = if is_weighted { shares } else { None };
        let any_goal = Goal { groups: GroupRule::Free, min_gpus: 1, min_nodes: 1, ..*goal };
        let report = verify(cluster, &any_goal, &Unverified { shares, ..Unverified::new(slot_to_expert) })?;
        let is_error = |kind: super::verify::Kind| kind.severity() == Severity::Error;
        if let Some(finding) = report.findings().iter().find(|finding| is_error(finding.kind())) {
            let text = format!("balance: slot_to_expert cannot be used: {finding}");
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        let mut plan = ExpertPlan::empty(cluster.clone(), *goal);
        plan.slot_to_expert.copy_from_slice(slot_to_expert);
        if let Some(shares) = shares {
            plan.weights.copy_from_slice(shares);
        }
        place_layers(plan, Options::default(), usize::MAX, || {
            let mut finisher = Finisher::new(cluster, goal);
            move |mut layer| {
                let steps: Vec<&[f32]> =
                    loads.map(|loads| loads.steps_of(layer.index).collect()).unwrap_or_default();
                finisher.finish(&steps, &mut layer);
                Ok(())
            }
        })
    }
}
