//! What a handle of a plan stands for, with a spread or without.

use super::handle::{Kind, Object};
use super::plan::dualpipe_plan;
use super::robust_plan::dualpipe_plan_objective::*;
use crate::schedule::Schedule;
use crate::search::{Objective, Plan, RobustPlan, Sampled, Stop};

/// A plan that C has a handle of.
pub(super) struct PlanObject {
    pub(super) schedule: Schedule,
    pub(super) makespan_ns: u64,
    pub(super) peak_live: Vec<usize>,
    pub(super) peak_memory_bytes: Vec<u64>,
    pub(super) lower_bound_ns: u64,
    pub(super) started_from: String,
    pub(super) start_makespan_ns: u64,
    pub(super) iterations: u64,
    pub(super) stop: Stop,
    pub(super) robust: Option<OnSamples>,
}

impl Object for PlanObject {
    type Opaque = dualpipe_plan;
    const KIND: Kind = Kind::Plan;
}

/// What a plan with a spread has besides.
pub(super) struct OnSamples {
    pub(super) objective: Objective,
    pub(super) of_plan: Sampled,
    pub(super) without_spread: Sampled,
    pub(super) published: Option<Sampled>,
}

impl PlanObject {
    pub(super) fn new(plan: Plan) -> PlanObject {
        PlanObject {
            schedule: plan.schedule,
            makespan_ns: plan.makespan_ns,
            peak_live: plan.peak_live,
            peak_memory_bytes: plan.peak_memory_bytes,
            lower_bound_ns: plan.lower_bound_ns,
            started_from: plan.started_from,
            start_makespan_ns: plan.start_makespan_ns,
            iterations: plan.iterations,
            stop: plan.stop,
            robust: None,
        }
    }

    pub(super) fn robust(plan: RobustPlan, objective: Objective) -> PlanObject {
        let published = plan.published.as_ref().map(|(_, sampled)| *sampled);
        let (started_from, started) = plan.published.unwrap_or(("planned".into(), plan.start));
        PlanObject {
            schedule: plan.schedule,
            makespan_ns: plan.robust.nominal_ns,
            peak_live: plan.peak_live,
            peak_memory_bytes: plan.peak_memory_bytes,
            lower_bound_ns: plan.lower_bound_ns,
            started_from,
            start_makespan_ns: started.nominal_ns,
            iterations: plan.iterations,
            stop: plan.stop,
            robust: Some(OnSamples {
                objective,
                of_plan: plan.robust,
                without_spread: plan.start,
                published,
            }),
        }
    }

    /// What was made small.
    pub(super) fn value_ns(&self) -> u64 {
        let of_robust = |robust: &OnSamples| robust.objective.of(&robust.of_plan.samples);
        self.robust.as_ref().map_or(self.makespan_ns, of_robust)
    }
}

pub(super) fn objective_to_c(objective: Objective) -> u32 {
    let objective = match objective {
        Objective::Mean => DUALPIPE_OBJECTIVE_MEAN,
        Objective::P95 => DUALPIPE_OBJECTIVE_P95,
    };
    objective as u32
}
