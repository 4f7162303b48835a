//! The inside of the planner: words and their lengths against schedules, their check and their simulation.

use super::anneal::fits;
use super::evaluate::Clock;
use super::finish::merges;
use super::model::{Model, Words};
use super::published::published_on;
use super::{moves, Problem};
use crate::cost::{Costs, Link, StageCosts};
use crate::ids::Rank;
use crate::placement::Placement;
use crate::random::Random;
use crate::schedule::{Schedule, Work};
use crate::sim::{simulate, MemoryCap};

fn problem(placement: Placement, num_microbatches: usize, random: &mut Random) -> Problem {
    let mut ns = |least: usize| (least + random.below(9)) as u64;
    let stages = (0..placement.num_stages()).map(|_| {
        let (forward_ns, input_ns, weight_ns) = (ns(1), ns(0), ns(0));
        let longer = forward_ns.max(input_ns + weight_ns);
        let overlapped_ns = longer + ns(0) % (forward_ns + input_ns + weight_ns - longer + 1);
        StageCosts {
            forward_ns,
            input_ns,
            weight_ns,
            overlapped_ns,
            output_bytes: ns(0),
            activation_bytes: ns(0),
            parameter_bytes: ns(0),
        }
    });
    let stages = stages.collect();
    let link = Link { latency_ns: ns(0) / 3, bytes_per_second: Some(1_000_000_000) };
    Problem {
        placement,
        num_microbatches,
        costs: Costs::new(stages, link).unwrap(),
        cap: MemoryCap::Unlimited,
    }
}

/// The schedule of these words, no I and W merged.
fn unmerged(problem: &Problem, model: &Model, words: &Words) -> Schedule {
    let apart: Vec<Vec<bool>> = words.iter().map(|word| vec![false; word.len()]).collect();
    let orders = model.orders(words, problem.placement.num_ranks(), &apart);
    Schedule::new("words", problem.placement.clone(), problem.num_microbatches, Work::Training, orders)
        .unwrap()
}

fn placements() -> Vec<Placement> {
    let mut placements = Vec::new();
    for num_ranks in 1..=4 {
        placements.push(Placement::linear(num_ranks).unwrap());
        placements.push(Placement::v(num_ranks).unwrap());
        placements.push(Placement::interleaved(num_ranks, 3).unwrap());
        placements.push(Placement::bidirectional(2 * num_ranks).unwrap());
    }
    let crossed = [[0, 1, 2, 0], [2, 3, 0, 2]].map(|ranks| ranks.map(Rank).to_vec());
    placements.push(Placement::new(4, &crossed).unwrap());
    placements
}

#[test]
fn published_schedules_as_words_are_never_slower() {
    let mut random = Random::new(1);
    let mut seen = 0;
    for placement in placements() {
        for num_microbatches in 1..=9 {
            let problem = problem(placement.clone(), num_microbatches, &mut random);
            let model = Model::new(&problem).unwrap();
            for schedule in published_on(&placement, num_microbatches) {
                let words = model.words(schedule.orders());
                let length = Clock::new(&model).length(&model, &words, u64::MAX >> 1);
                let makespan_ns = simulate(&schedule, &problem.costs).unwrap().timeline.makespan_ns();
                let length = length.unwrap_or_else(|| panic!("{} cannot run as words", schedule.title()));
                assert!(length.makespan_ns <= makespan_ns, "{}", schedule.title());
                seen += 1;
            }
        }
    }
    assert!(seen > 200, "{seen}");
}

/// Walks at random through words that fit, from `words`, and shows each to `look`, also those that cannot run.
fn walk(
    model: &Model,
    words: &mut Words,
    random: &mut Random,
    steps: usize,
    mut look: impl FnMut(&Words) -> bool,
) {
    let mut put_off = vec![0; model.copies.len()];
    for _ in 0..steps {
        let rank = random.below(words.len());
        if words[rank].is_empty() {
            continue;
        }
        let saved = words[rank].clone();
        let at = random.below(saved.len());
        moves::change(model, &mut words[rank], at, random);
        if !fits(model, rank, &words[rank], &mut put_off) || !look(words) {
            words[rank] = saved;
        }
    }
}

#[test]
fn words_run_exactly_if_their_schedule_passes_its_check_and_take_as_long_as_simulated() {
    let mut random = Random::new(2);
    let (mut ran, mut stuck) = (0, 0);
    for placement in placements() {
        for num_microbatches in [1, 2, 3, 6, 7] {
            let problem = problem(placement.clone(), num_microbatches, &mut random);
            let model = Model::new(&problem).unwrap();
            let serial = super::construct::construct(&problem, 0, 1).unwrap();
            let mut words = model.words(&serial[0]);
            let mut clock = Clock::new(&model);
            walk(&model, &mut words, &mut random, 60, |words| {
                let schedule = unmerged(&problem, &model, words);
                let length = clock.length(&model, words, u64::MAX >> 1);
                let simulated = simulate(&schedule, &problem.costs).map(|s| s.timeline.makespan_ns()).ok();
                assert_eq!(length.map(|l| l.makespan_ns), simulated, "{}", schedule.to_text());
                ran += usize::from(length.is_some());
                stuck += usize::from(length.is_none());
                length.is_some()
            });
        }
    }
    assert!(ran > 1000 && stuck > 100, "{ran} ran, {stuck} were stuck");
}

#[test]
fn a_limit_cuts_exactly_the_words_that_take_longer() {
    let mut random = Random::new(3);
    let problem = problem(Placement::bidirectional(4).unwrap(), 6, &mut random);
    let model = Model::new(&problem).unwrap();
    let start = super::construct::construct(&problem, 0, 1).unwrap();
    let mut words = model.words(&start[0]);
    let mut clock = Clock::new(&model);
    walk(&model, &mut words, &mut random, 200, |words| {
        let Some(length) = clock.length(&model, words, u64::MAX >> 1) else { return false };
        assert_eq!(clock.length(&model, words, length.makespan_ns), Some(length));
        assert_eq!(clock.length(&model, words, length.makespan_ns - 1), None);
        true
    });
}

#[test]
fn merging_i_and_w_into_b_keeps_the_makespan_and_leaves_none_that_could_be_merged() {
    let mut random = Random::new(4);
    let mut merged = 0;
    for placement in placements() {
        let problem = problem(placement.clone(), 5, &mut random);
        let model = Model::new(&problem).unwrap();
        let start = super::construct::construct(&problem, 0, 1).unwrap();
        let mut words = model.words(&start[0]);
        let mut clock = Clock::new(&model);
        walk(&model, &mut words, &mut random, 40, |words| {
            let Some(length) = clock.length(&model, words, u64::MAX >> 1) else { return false };
            let mut is_merged = merges(&model, words);
            let makespan_ns = |is_merged: &[Vec<bool>]| {
                let orders = model.orders(words, placement.num_ranks(), is_merged);
                let schedule = Schedule::new("merged", placement.clone(), 5, Work::Training, orders).unwrap();
                simulate(&schedule, &problem.costs).unwrap().timeline.makespan_ns()
            };
            assert_eq!(makespan_ns(&is_merged), length.makespan_ns);
            merged += is_merged.iter().flatten().filter(|&&is| is).count();
            // One merge taken back at a time: the words' own orders run the same.
            if let Some(rank) = is_merged.iter().position(|rank| rank.contains(&true)) {
                is_merged[rank].fill(false);
                assert_eq!(makespan_ns(&is_merged), length.makespan_ns);
            }
            true
        });
    }
    assert!(merged > 1000, "{merged}");
}

#[test]
fn memory_and_order_on_a_rank_are_checked() {
    let placement = Placement::linear(1).unwrap();
    let mut problem = problem(placement, 2, &mut Random::new(5));
    problem.cap = MemoryCap::Activations(vec![1]);
    let model = Model::new(&problem).unwrap();
    let (f, i, w, p) = (model.forward(0), model.input(0), model.weight(0), model.pair(0, 0));
    for (word, want) in [
        (vec![f, i, w, f, i, w], true),
        (vec![f, i, f, w, i, w], false), // two alive
        (vec![f, w, i, f, i, w], false), // W before its I
        (vec![f, p, i, w], false),       // a pair begins its F before its B ends
        (vec![i, w, f, f, i, w], false), // nothing to free
    ] {
        assert_eq!(fits(&model, 0, &word, &mut [0]), want, "{word:?}");
    }
}
