//! Layers shared out among threads. Each layer is placed for itself, so that the threads change nothing but time.

use super::plan::{ExpertPlan, LayerBalance};
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

/// One layer, and where its part of the plan goes.
pub(super) struct Layer<'a> {
    pub(super) index: usize,
    /// `[num_slots]`
    pub(super) slot_to_expert: &'a mut [u32],
    /// `[num_slots]`
    pub(super) slot_to_replica: &'a mut [u32],
    /// `[num_experts]`
    pub(super) replica_counts: &'a mut [u32],
    /// `[num_slots]`, or nothing where the split is equal.
    pub(super) weights: &'a mut [f64],
    pub(super) balance: &'a mut LayerBalance,
}

impl Options<'_> {
    pub(super) fn check(&self) -> Result<()> {
        in_range("balance", "num_threads", self.num_threads, 0..=THREADS_MAX).map(drop)
    }
}

/// Fills an empty plan: each thread makes itself a placer, which places layer after layer, about `slots_per_report`
/// slots between two calls of `progress`.
///
/// # Errors
///
/// `Cancelled` if `progress` returned `false`; otherwise what the first placer failed with, by the number of its layer.
pub(super) fn place_layers<Placer: FnMut(Layer<'_>) -> Result<()> + Send>(
    mut plan: ExpertPlan,
    options: Options<'_>,
    slots_per_report: usize,
    new_placer: impl Fn() -> Placer,
) -> Result<ExpertPlan> {
    let (num_layers, num_slots) = (plan.num_layers(), plan.cluster().num_slots());
    let num_threads = match options.num_threads {
        0 => rayon::current_num_threads(),
        n => n,
    };
    let num_threads = num_threads.min(num_layers);
    let mut placers: Vec<Placer> = (0..num_threads).map(|_| new_placer()).collect();
    let mut left = layers(&mut plan);

    let Some(progress) = options.progress else {
        place(&mut placers, &mut left, num_layers)?;
        drop(left);
        return Ok(plan);
    };
    let per_thread = slots_per_report.div_ceil(num_slots);
    let mut done = 0;
    while done < num_layers {
        let batch = (per_thread * num_threads).min(num_layers - done);
        place(&mut placers, &mut left, batch)?;
        done += batch;
        if !progress(done, num_layers) {
            let text = format!("balance: cancelled after {done} of {num_layers} layers");
            return Err(Error::new(ErrorKind::Cancelled, text));
        }
    }
    drop(left);
    Ok(plan)
}

fn layers(plan: &mut ExpertPlan) -> impl Iterator<Item = Layer<'_>> {
    let (num_experts, num_slots) = (plan.num_experts(), plan.cluster().num_slots());
    let experts = plan.slot_to_expert.chunks_exact_mut(num_slots);
    let replicas = plan.slot_to_replica.chunks_exact_mut(num_slots);
    let counts = plan.replica_counts.chunks_exact_mut(num_experts);
    let mut weights = plan.weights.chunks_exact_mut(num_slots);
    let outputs = experts.zip(replicas).zip(counts).zip(&mut plan.layers).enumerate();
    outputs.map(move |(index, (((experts, replicas), counts), balance))| Layer {
        index,
        slot_to_expert: experts,
        slot_to_replica: replicas,
        replica_counts: counts,
        weights: weights.next().unwrap_or_default(),
        balance,
    })
}

/// Places the next `num_layers` of `layers`, equally many consecutive ones with each placer; the last placer is the
/// caller's own.
fn place<'a, Placer: FnMut(Layer<'_>) -> Result<()> + Send>(
    placers: &mut [Placer],
    layers: &mut impl Iterator<Item = Layer<'a>>,
    num_layers: usize,
) -> Result<()> {
    let per_placer = num_layers.div_ceil(placers.len());
    let Some((own, others)) = placers.split_last_mut() else {
        return Ok(());
    };
    let mut layers = layers.take(num_layers);
    if others.is_empty() {
        return layers.try_for_each(own);
    }
    let mut outcomes = vec![Ok(()); others.len() + 1];
    let Some((own_outcome, outcomes_of_others)) = outcomes.split_last_mut() else {
        return Ok(());
    };
    rayon::in_place_scope(|scope| {
        for (placer, outcome) in others.iter_mut().zip(outcomes_of_others) {
            let part: Vec<_> = layers.by_ref().take(per_placer).collect();
            scope.spawn(move |_| *outcome = part.into_iter().try_for_each(placer));
        }
        *own_outcome = layers.try_for_each(own);
    });
    outcomes.into_iter().collect()
}
