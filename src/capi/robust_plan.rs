//! Robust plans: the schedule that is best when times spread, as clocks jitter and experts are unevenly loaded.
//!
//! A step never runs at its mean costs, and where ranks wait for one another the slowest counts: the mean makespan is
//! above the makespan of the mean. A robust plan is a plan (plan.h), searched on seeded samples.
//!
//! ```c
//! // The mean over samples in which each op varies by 5 % and each micro-batch at a stage by 20 %.
//! #include <dualpipe.h>
//! #include <stdio.h>
//!
//! static dualpipe_status plan(const dualpipe_plan_options *options, const dualpipe_costs *costs,
//!                             dualpipe_plan_t *made) {
//!   dualpipe_spread spread = DUALPIPE_SPREAD_INIT;
//!   dualpipe_sampled sampled = DUALPIPE_SAMPLED_INIT;
//!   spread.op_jitter = 0.05;
//!   spread.expert_imbalance = 0.2;
//!   spread.samples = 64;
//!   dualpipe_status status = dualpipe_plan_create_robust(options, costs, &spread, DUALPIPE_OBJECTIVE_MEAN, made);
//!   if (status == DUALPIPE_OK) status = dualpipe_plan_sampled(*made, DUALPIPE_SAMPLED_PLAN, &sampled);
//!   if (status == DUALPIPE_OK) printf("%.1f us to be expected\n", sampled.held_out_mean_ns / 1e3);
//!   return status;
//! }
//! ```

use super::args::{self, Out};
use super::cost::{self, dualpipe_costs};
use super::guard::call;
use super::handle;
use super::options::{self, Growing, OutStruct};
use super::plan::{dualpipe_plan_options, dualpipe_plan_t};
use super::plan_object::PlanObject;
use super::planner::read_problem;
use super::status::{dualpipe_status, Failure};
use crate::search::{plan_robust, Effort, Objective, Progress, Sampled, Spread};

use dualpipe_plan_objective::*;
use dualpipe_sampled_schedule::*;

/// How far the times of ops spread about their costs. Start from DUALPIPE_SPREAD_INIT.
///
/// Factors of mean 1 are drawn from what is close to a normal distribution, kept between 0.1 and 10. Messages do not
/// spread.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_spread {
    /// sizeof(dualpipe_spread).
    pub size: u32,
    /// Samples to search on, 1 to 1024, and with the passes of a step at most 4194304. As many others are held out.
    pub samples: u32,
    /// Relative standard deviation of each F, each I and each W, 0 to 1.
    pub op_jitter: f64,
    /// Relative standard deviation of what a micro-batch takes at a stage, 0 to 1: its F, I and W alike, as uneven
    /// experts make it.
    pub expert_imbalance: f64,
    /// Another seed draws other samples.
    pub seed: u64,
}

// SAFETY: repr(C), two u32 and three times 8 bytes.
unsafe impl Growing for dualpipe_spread {
    const SIZE_V1: usize = 32;
}

/// What of the makespans on samples is made small.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_plan_objective {
    /// Their mean.
    DUALPIPE_OBJECTIVE_MEAN = 1,
    /// The least that 95 of 100 do not exceed.
    DUALPIPE_OBJECTIVE_P95 = 2,
}

/// Which schedule was played on samples.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_sampled_schedule {
    /// The plan's.
    DUALPIPE_SAMPLED_PLAN = 1,
    /// That of a plan without a spread, which the search began with.
    DUALPIPE_SAMPLED_WITHOUT_SPREAD = 2,
    /// The published one with the lowest objective of those that are possible and keep to the cap.
    DUALPIPE_SAMPLED_PUBLISHED = 3,
}

/// What a schedule takes when times spread. Start from DUALPIPE_SAMPLED_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_sampled {
    /// sizeof(dualpipe_sampled).
    pub size: u32,
    /// 0.
    pub reserved: u32,
    /// Without a spread.
    pub nominal_ns: u64,
    /// Mean over the samples that were searched on.
    pub mean_ns: u64,
    /// Of those: the least that 95 of 100 do not exceed.
    pub p95_ns: u64,
    /// Of those: the shortest.
    pub min_ns: u64,
    /// Of those: the longest.
    pub max_ns: u64,
    /// Mean over as many samples that the search never saw: what to expect.
    pub held_out_mean_ns: u64,
    /// Of these: the least that 95 of 100 do not exceed.
    pub held_out_p95_ns: u64,
    /// Of these: the shortest.
    pub held_out_min_ns: u64,
    /// Of these: the longest.
    pub held_out_max_ns: u64,
}

// SAFETY: repr(C), two u32 and nine u64.
unsafe impl Growing for dualpipe_sampled {
    const SIZE_V1: usize = 80;
}

/// Plans for times that spread: the schedule of least objective, a dualpipe_plan_objective, on seeded samples. Half of
/// the effort plans without a spread; on the samples the result is never worse than that, nor than any published
/// schedule. Progress and its callback as of dualpipe_plan_create.
///
/// Errors: those of dualpipe_plan_create; a spread that is not in its ranges; times that all together exceed
/// 9 * 10^14 ns.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_plan_create_robust(
    options: *const dualpipe_plan_options,
    costs: *const dualpipe_costs,
    spread: *const dualpipe_spread,
    objective: u32,
    plan: *mut dualpipe_plan_t,
) -> dualpipe_status {
    call("dualpipe_plan_create_robust", || {
        // SAFETY: the caller's.
        let (options, costs) = unsafe { (options::read("options", options)?, cost::read("costs", costs)?) };
        // SAFETY: the caller's.
        let spread = unsafe { options::read("spread", spread) }?;
        let spread = Spread {
            op_jitter: spread.op_jitter,
            expert_imbalance: spread.expert_imbalance,
            samples: spread.samples as usize,
            seed: spread.seed,
        };
        let objectives = [DUALPIPE_OBJECTIVE_MEAN, DUALPIPE_OBJECTIVE_P95];
        let known = objectives.map(|objective| (objective as u32, objective));
        let objective = match args::one_of("objective", objective, known)? {
            DUALPIPE_OBJECTIVE_MEAN => Objective::Mean,
            DUALPIPE_OBJECTIVE_P95 => Objective::P95,
        };
        // SAFETY: the caller's, as is what the options point to.
        let (problem, out) = unsafe { (read_problem(&options, costs)?, Out::new("plan", plan)?) };
        let search = options.search()?;
        let robust = |effort: &Effort, progress: Progress<'_>| {
            plan_robust(&problem, &spread, objective, effort, progress)
        };
        let found = search.run(robust)?;
        out.write(handle::insert(PlanObject::robust(found, objective))?);
        Ok(())
    })
}

/// What a schedule, a dualpipe_sampled_schedule, takes on the samples of a plan with a spread.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT for a plan without one, and for the published schedule where none is
/// possible.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_plan_sampled(
    plan: dualpipe_plan_t,
    which: u32,
    sampled: *mut dualpipe_sampled,
) -> dualpipe_status {
    call("dualpipe_plan_sampled", || {
        let object = handle::get::<PlanObject>("plan", plan)?;
        let all = [DUALPIPE_SAMPLED_PLAN, DUALPIPE_SAMPLED_WITHOUT_SPREAD, DUALPIPE_SAMPLED_PUBLISHED];
        let which = args::one_of("which", which, all.map(|which| (which as u32, which)))?;
        // SAFETY: the caller's.
        let out = unsafe { OutStruct::new("sampled", sampled) }?;
        let Some(robust) = &object.robust else {
            return Err(Failure::argument("plan", "was made without a spread: it has no samples"));
        };
        let found = match which {
            DUALPIPE_SAMPLED_PLAN => Some(robust.of_plan),
            DUALPIPE_SAMPLED_WITHOUT_SPREAD => Some(robust.without_spread),
            DUALPIPE_SAMPLED_PUBLISHED => robust.published,
        };
        let none = || Failure::argument("which", "is the published schedule, of which none was possible");
        out.write(to_c(&found.ok_or_else(none)?));
        Ok(())
    })
}

fn to_c(sampled: &Sampled) -> dualpipe_sampled {
    let Sampled { nominal_ns, samples, held_out } = sampled;
    dualpipe_sampled {
        size: 0,
        reserved: 0,
        nominal_ns: *nominal_ns,
        mean_ns: samples.mean_ns,
        p95_ns: samples.p95_ns,
        min_ns: samples.min_ns,
        max_ns: samples.max_ns,
        held_out_mean_ns: held_out.mean_ns,
        held_out_p95_ns: held_out.p95_ns,
        held_out_min_ns: held_out.min_ns,
        held_out_max_ns: held_out.max_ns,
    }
}
