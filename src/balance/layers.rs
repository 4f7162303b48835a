//! Layers shared out among threads. Each layer is placed for itself, so that the threads change nothing but time.

use super::plan::{ExpertPlan, LayerBalance};
use super::Problem;
use crate::error::{in_range, Error, ErrorKind, Result};

/// How to compute, not what.
pub struct Options<'a> {
    /// 1 (the default): on the caller's thread. n: on at most n, the caller's and n - 1 of rayon's. 0: on as many
    /// as rayon has. At most 4096. After a `fork`, rayon's threads are the parent's: use 1 in the child.
    pub num_threads: usize,
    /// Called on the caller's thread now and then with the number of layers done and of all; `false` stops.
    pub progress: Option<&'a mut dyn FnMut(usize, usize) -> bool>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options { num_threads: 1, progress: None }
    }
}

/// Most threads that may be asked for.
pub const THREADS_MAX: usize = 4096;
/// Between two calls of `progress` a thread places about so many slots: a millisecond's work.
const SLOTS_PER_REPORT: usize = 1 << 14;

/// One layer: its loads, and where its part of the plan goes.
pub(super) struct Layer<'a> {
    /// `[num_experts]`
    pub(super) loads: &'a [f32],
    /// `[num_slots]`
    pub(super) slot_to_expert: &'a mut [u32],
    /// `[num_slots]`
    pub(super) slot_to_replica: &'a mut [u32],
    /// `[num_experts]`
    pub(super) replica_counts: &'a mut [u32],
    pub(super) balance: &'a mut LayerBalance,
}

/// Checks the request and fills a plan: each thread makes itself a placer, which places layer after layer.
pub(super) fn place_layers<Placer: FnMut(Layer<'_>) + Send>(
    problem: &Problem,
    loads: &[f32],
    options: Options<'_>,
    new_placer: impl Fn() -> Placer,
) -> Result<ExpertPlan> {
    in_range("balance", "num_threads", options.num_threads, 0..=THREADS_MAX)?;
    problem.check()?;
    problem.check_loads(loads)?;
    let num_layers = problem.num_layers;
    let num_threads = match options.num_threads {
        0 => rayon::current_num_threads(),
        n => n,
    };
    let num_threads = num_threads.min(num_layers);
    let mut placers: Vec<Placer> = (0..num_threads).map(|_| new_placer()).collect();
    let mut plan = ExpertPlan::empty(problem);
    let mut left = layers(&mut plan, loads);

    let Some(progress) = options.progress else {
        place(&mut placers, left, num_layers.div_ceil(num_threads));
        return Ok(plan);
    };
    let per_thread = SLOTS_PER_REPORT.div_ceil(problem.num_slots);
    let mut done = 0;
    while done < num_layers {
        let batch = (per_thread * num_threads).min(num_layers - done);
        place(&mut placers, left.by_ref().take(batch), batch.div_ceil(num_threads));
        done += batch;
        if !progress(done, num_layers) {
            let text = format!("balance: cancelled after {done} of {num_layers} layers");
            return Err(Error::new(ErrorKind::Cancelled, text));
        }
    }
    drop(left);
    Ok(plan)
}

fn layers<'a>(plan: &'a mut ExpertPlan, loads: &'a [f32]) -> impl Iterator<Item = Layer<'a>> {
    let &Problem { num_experts, num_slots, .. } = plan.problem();
    let experts = plan.slot_to_expert.chunks_exact_mut(num_slots);
    let replicas = plan.slot_to_replica.chunks_exact_mut(num_slots);
    let counts = plan.replica_counts.chunks_exact_mut(num_experts);
    let inputs = loads.chunks_exact(num_experts).zip(&mut plan.layers);
    let outputs = experts.zip(replicas).zip(counts);
    inputs.zip(outputs).map(|((loads, balance), ((experts, replicas), counts))| Layer {
        loads,
        slot_to_expert: experts,
        slot_to_replica: replicas,
        replica_counts: counts,
        balance,
    })
}

/// Places `layers`, `per_placer` consecutive ones with each placer; the last placer is the caller's own.
fn place<'a, Placer: FnMut(Layer<'_>) + Send>(
    placers: &mut [Placer],
    mut layers: impl Iterator<Item = Layer<'a>>,
    per_placer: usize,
) {
    let Some((own, others)) = placers.split_last_mut() else {
        return;
    };
    if others.is_empty() {
        layers.for_each(own);
        return;
    }
    rayon::in_place_scope(|scope| {
        for placer in others {
            let part: Vec<_> = layers.by_ref().take(per_placer).collect();
            scope.spawn(move |_| part.into_iter().for_each(placer));
        }
        layers.for_each(own);
    });
}
