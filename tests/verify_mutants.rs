//! The verifier against 10,000 seeded mutants of valid schedules and of valid communicating orders, each judged by a
//! naive oracle as well: every fault is found, and nothing valid is refused.

#[path = "support/mutate.rs"]
mod mutate;
#[path = "support/naive_verify.rs"]
mod naive_verify;
mod support;

use std::collections::{BTreeMap, BTreeSet};

use dualpipe::cost::{Costs, Link, StageCosts};
use dualpipe::ids::Rank;
use dualpipe::op::{Action, Message, Op};
use dualpipe::program::{lower, Instruction, Program};
use dualpipe::schedule::{Schedule, Work};
use dualpipe::sim::MemoryCap;
use dualpipe::verify::{verify, Kind, Mode, Options, Receives, Report, Transport};
use fastrand::Rng;
use support::{family, seeds};

const MUTANTS: u64 = 10_500;
/// Of each kind of fault, so many mutants at least have it.
const OF_EACH_KIND: usize = 100;

type Orders = Vec<Vec<Action>>;

/// A mutant: a schedule, its communicating order if it has one, and a cap.
struct Mutant {
    schedule: Schedule,
    actions: Option<Orders>,
    cap: MemoryCap,
    costs: Costs,
}

#[test]
fn every_mutant_is_judged_as_by_the_oracle() {
    let bases = bases();
    let mut faulty: BTreeMap<String, usize> = BTreeMap::new();
    let (mut valid, mut reduced) = (0, 0);
    let (seeds, are_all) = seeds(MUTANTS);
    for seed in seeds {
        let mut rng = Rng::with_seed(seed);
        let base = &bases[rng.usize(0..bases.len())];
        let mutant = mutant(&mut rng, base);
        let report = report(&mutant, seed % 8 == 0);
        let wanted = judge(&mutant);
        let found: BTreeSet<Kind> = report.findings.iter().map(|finding| finding.kind).collect();
        let shown = || {
            let actions = mutant.actions.as_ref().map(show).unwrap_or_default();
            let title = mutant.schedule.title();
            format!("SEED={seed} {title}\n{}{actions}{}", mutant.schedule.to_text(), report.to_text())
        };
        assert_eq!(found, wanted.kinds, "kinds found and wanted: {}", shown());
        for transport in Transport::ALL {
            let held = report.holds_for(transport);
            assert_eq!(held, wanted.holds[&transport], "{transport:?}: {}", shown());
        }
        let trials: BTreeMap<_, bool> = report
            .trials
            .iter()
            .map(|trial| ((trial.receives, trial.transport), trial.fault.is_none()))
            .collect();
        assert_eq!(trials, wanted.trials, "trials found and wanted: {}", shown());
        for finding in &report.findings {
            let Some(smaller) = &finding.counterexample else { continue };
            reduced += 1;
            assert!(smaller.is_smallest, "{}", shown());
            assert!(smaller.schedule.num_microbatches() <= mutant.schedule.num_microbatches());
            let smaller = Mutant {
                schedule: smaller.schedule.clone(),
                actions: smaller.actions.clone(),
                cap: mutant.cap.clone(),
                costs: mutant.costs.clone(),
            };
            assert!(judge(&smaller).kinds.contains(&finding.kind), "counterexample: {}", shown());
        }
        valid += usize::from(wanted.kinds.is_empty());
        for kind in wanted.kinds {
            *faulty.entry(format!("{kind:?}")).or_default() += 1;
        }
        for mode in Mode::ALL {
            let is_it = |finding: &&dualpipe::verify::Finding| {
                finding.kind == Kind::Deadlock && finding.transports.iter().any(|t| t.mode == mode)
            };
            *faulty.entry(format!("Deadlock {mode:?}")).or_default() +=
                report.findings.iter().filter(is_it).count().min(1);
        }
    }
    println!("valid: {valid}, counterexamples: {reduced}, faulty by kind: {faulty:#?}");
    if are_all {
        assert!(valid > 1000, "{valid} valid mutants");
        assert!(reduced > 1000, "{reduced} counterexamples");
        for kind in Kind::ALL {
            let count = faulty.get(&format!("{kind:?}")).copied().unwrap_or(0);
            assert!(count > OF_EACH_KIND, "only {count} mutants with {kind:?}");
        }
        for mode in Mode::ALL {
            let count = faulty[&format!("Deadlock {mode:?}")];
            assert!(count > OF_EACH_KIND, "only {count} deadlocks with {mode:?}");
        }
    }
}

#[test]
fn no_published_schedule_is_refused() {
    for (num_ranks, num_microbatches) in [(1, 3), (2, 4), (3, 5), (4, 8), (5, 12), (6, 12), (7, 14), (8, 16)]
    {
        for schedule in family(num_ranks, num_microbatches) {
            let report = verify(&schedule, &Options::default()).unwrap();
            assert!(report.is_valid(), "{}\n{}", schedule.title(), report.to_text());
            assert_eq!(report.peak_live, schedule.check().unwrap().peak_live);
            let lowered = lowered(&schedule).unwrap();
            let grouped: Vec<Transport> =
                Transport::ALL.into_iter().filter(|t| t.mode != Mode::Rendezvous).collect();
            let options = Options { actions: Some(&lowered), transports: &grouped, ..Options::default() };
            let report = verify(&schedule, &options).unwrap();
            assert!(report.is_valid(), "{} lowered\n{}", schedule.title(), report.to_text());
        }
    }
}

fn report(mutant: &Mutant, counterexamples: bool) -> Report {
    let options = Options {
        actions: mutant.actions.as_deref(),
        costs: Some(&mutant.costs),
        cap: mutant.cap.clone(),
        counterexamples,
        ..Options::default()
    };
    verify(&mutant.schedule, &options).unwrap()
}

/// What the oracle says.
struct Judgement {
    kinds: BTreeSet<Kind>,
    holds: BTreeMap<Transport, bool>,
    trials: BTreeMap<(Receives, Transport), bool>,
}

fn judge(mutant: &Mutant) -> Judgement {
    let Mutant { schedule, actions, cap, costs } = mutant;
    let mut kinds = naive_verify::op_faults(schedule);
    let passes_ok = kinds.is_empty() || kinds.contains(&Kind::DependencyCycle);
    if passes_ok {
        let limit = |rank: usize| match cap {
            MemoryCap::Unlimited => u64::MAX,
            MemoryCap::Activations(caps) => caps[rank.min(caps.len() - 1)] as u64,
            MemoryCap::Bytes(caps) => caps[rank.min(caps.len() - 1)],
        };
        let peaks = match cap {
            MemoryCap::Unlimited => Vec::new(),
            MemoryCap::Activations(_) => naive_verify::peaks(schedule, None),
            MemoryCap::Bytes(_) => naive_verify::peaks(schedule, Some(costs)),
        };
        if (0..peaks.len()).any(|rank| peaks[rank] > limit(rank)) {
            kinds.insert(Kind::ExceedsCap);
        }
    }
    let is_sound = |kinds: &BTreeSet<Kind>| {
        let harmless = [Kind::ExceedsCap, Kind::FifoMismatch];
        kinds.iter().all(|kind| harmless.contains(kind))
    };
    let schedule_kinds = kinds.clone();
    let schedule_ok = kinds.is_empty();
    let mut trials = BTreeMap::new();
    let orders: Vec<(Receives, Orders)> = match actions {
        Some(actions) => vec![(Receives::Given, actions.clone())],
        None if !is_sound(&kinds) => Vec::new(),
        None => {
            let before_use = naive_verify::receive_before_use(schedule);
            let at_start = at_start(&before_use);
            let lowered = lowered(schedule).map(|lowered| (Receives::Lowered, lowered));
            let others = [(Receives::BeforeUse, before_use), (Receives::AtStart, at_start)];
            lowered.into_iter().chain(others).collect()
        }
    };
    let mut wrong_in = BTreeMap::new();
    for (receives, orders) in &orders {
        let found = naive_verify::action_faults(schedule, orders, passes_ok);
        let could_tell = is_sound(&found) && is_sound(&schedule_kinds);
        for transport in Transport::ALL {
            let runs = naive_verify::step_runs(schedule, orders, transport);
            let fifo = found.contains(&Kind::FifoMismatch) && !transport.is_tagged;
            let mut wrong = found.clone();
            if transport.is_tagged {
                wrong.remove(&Kind::FifoMismatch);
            }
            if could_tell && !runs && !fifo {
                wrong.insert(Kind::Deadlock);
            }
            // What runs has no fault, and what has none runs.
            assert_eq!(runs, wrong.is_empty() && is_fine_but_for_memory(&schedule_kinds), "{wrong:?}");
            trials.insert((*receives, transport), wrong.is_empty());
            wrong_in.insert((*receives, transport), wrong);
        }
    }
    let holds = Transport::ALL.map(|transport| {
        let good = |(receives, _): &(Receives, Orders)| trials[&(*receives, transport)];
        let some_good = orders.iter().any(good);
        if !some_good {
            // The first of the orders stands for all of them.
            let first = orders.first().and_then(|(receives, _)| wrong_in.get(&(*receives, transport)));
            let kind = |kinds: &BTreeSet<Kind>| match actions {
                Some(_) => kinds.clone(),
                None => kinds.iter().next().copied().into_iter().collect(),
            };
            kinds.extend(first.map(kind).unwrap_or_default());
        }
        (transport, schedule_ok && some_good)
    });
    Judgement { kinds, holds: holds.into_iter().collect(), trials }
}

fn is_fine_but_for_memory(kinds: &BTreeSet<Kind>) -> bool {
    kinds.iter().all(|&kind| kind == Kind::ExceedsCap)
}

fn show(orders: &Orders) -> String {
    let mut text = String::new();
    for (rank, order) in orders.iter().enumerate() {
        text += &format!("rank {rank}\n");
        for (position, action) in order.iter().enumerate() {
            text += &format!("  {position:>3} {action}\n");
        }
    }
    text
}

/// A valid schedule, with a valid communicating order for blocking groups and one for asynchronous sends.
struct Base {
    schedule: Schedule,
    orders: [Orders; 2],
    peaks: [Vec<u64>; 2],
    costs: Costs,
}

fn bases() -> Vec<Base> {
    let sizes = [(1, 2), (2, 2), (2, 3), (2, 4), (3, 3), (4, 4), (4, 6), (8, 14)];
    let mut bases: Vec<Base> = Vec::new();
    for (num_ranks, num_microbatches) in sizes {
        for schedule in family(num_ranks, num_microbatches) {
            let two = schedule.placement().num_directions() == 2;
            let is_large = num_ranks == 8 && !schedule.name().starts_with("dualpipe");
            let is_rare = schedule.work() == Work::ForwardOnly && num_ranks != 2;
            if is_large || is_rare {
                continue;
            }
            // Reductions are in schedules of two directions alone: more of these.
            let copies = if two && num_ranks < 8 { 6 } else { 1 };
            for _ in 0..copies {
                bases.push(base(schedule.clone()));
            }
        }
    }
    bases
}

fn base(schedule: Schedule) -> Base {
    let stage = |stage: usize| StageCosts {
        activation_bytes: 10 + stage as u64,
        parameter_bytes: 100 + 7 * stage as u64,
        ..StageCosts::default()
    };
    let stages = (0..schedule.placement().num_stages()).map(stage).collect();
    let costs = Costs::new(stages, Link::default()).unwrap();
    let orders = [lowered(&schedule).unwrap(), naive_verify::receive_before_use(&schedule)];
    let peaks = [naive_verify::peaks(&schedule, None), naive_verify::peaks(&schedule, Some(&costs))];
    Base { schedule, orders, peaks, costs }
}

/// Lowered by the library; `None` where that refuses.
fn lowered(schedule: &Schedule) -> Option<Orders> {
    let of_rank = |program: &Program| {
        let mut sent: BTreeMap<usize, Message> = BTreeMap::new();
        let actions = program.instructions().iter().filter_map(|&instruction| match instruction {
            Instruction::Receive { message, from, .. } => Some(Action::Receive { message, from }),
            Instruction::Run(task) => Some(Action::Run(task)),
            Instruction::Send { message, to, buffer } => {
                sent.insert(buffer.index(), message);
                Some(Action::Send { message, to })
            }
            Instruction::Free(buffer) => sent.remove(&buffer.index()).map(Action::WaitSend),
        });
        actions.collect()
    };
    Some(lower(schedule).ok()?.iter().map(of_rank).collect())
}

/// All receives first, in the order of their sends.
fn at_start(before_use: &Orders) -> Orders {
    let ranks = 0..before_use.len();
    let order = |to: usize| {
        let sends = ranks.clone().flat_map(|from| before_use[from].iter().map(move |action| (from, action)));
        let receives = sends.filter_map(|(from, action)| match *action {
            Action::Send { message, to: receiver } if receiver.index() == to => {
                Some(Action::Receive { message, from: Rank(from as u32) })
            }
            _ => None,
        });
        let rest = before_use[to].iter().filter(|action| !matches!(action, Action::Receive { .. })).copied();
        receives.chain(rest).collect()
    };
    ranks.clone().map(order).collect()
}

fn mutant(rng: &mut Rng, base: &Base) -> Mutant {
    let mut schedule = base.schedule.clone();
    let mut actions = None;
    let mut cap = MemoryCap::Unlimited;
    match rng.usize(0..20) {
        0 => {}
        1..=6 => {
            let mut orders = schedule.orders().to_vec();
            (0..rng.usize(1..=2)).for_each(|_| mutate::mutate_ops(rng, &schedule, &mut orders));
            schedule = with_orders(&schedule, orders);
        }
        kind => {
            let mut orders = base.orders[rng.usize(0..2)].clone();
            match kind {
                7..=8 => {
                    // The ops of the actions and of the schedule alike.
                    let mut ops: Vec<Vec<Op>> = schedule.orders().to_vec();
                    mutate::mutate_ops(rng, &schedule, &mut ops);
                    schedule = with_orders(&schedule, ops);
                    orders = naive_verify::receive_before_use(&schedule);
                }
                9 => mutate::wait_for_each_send(rng, &mut orders),
                _ => (0..rng.usize(1..=2)).for_each(|_| mutate::mutate_actions(rng, &schedule, &mut orders)),
            }
            actions = Some(orders);
        }
    }
    if rng.usize(0..6) == 0 {
        // As much as it needs, or a little less.
        let peak = |peaks: &[u64]| peaks.iter().max().copied().unwrap();
        cap = if rng.bool() {
            let less = rng.u64(0..2);
            MemoryCap::Activations(vec![peak(&base.peaks[0]).saturating_sub(less).max(1) as usize])
        } else {
            let less = rng.u64(0..3);
            MemoryCap::Bytes(base.peaks[1].iter().map(|peak| peak - less.min(1)).collect())
        };
    }
    Mutant { schedule, actions, cap, costs: base.costs.clone() }
}

fn with_orders(schedule: &Schedule, orders: Vec<Vec<Op>>) -> Schedule {
    let placement = schedule.placement().clone();
    Schedule::new("mutant", placement, schedule.num_microbatches(), schedule.work(), orders).unwrap()
}
