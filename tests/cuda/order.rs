//! The order of the device's work: right whatever the device does first, and no wait too many.

use std::sync::atomic::Ordering;

use dualpipe::schedule::{dualpipe, dualpipe_v, one_f_one_b, Schedule, Work};

use crate::flow::{good_step, Setup};
use crate::standin::{Session, LAZY, RANK_LOCAL};

type Make = fn(usize, usize, Work) -> dualpipe::error::Result<Schedule>;

fn schedules() -> Vec<Schedule> {
    let sizes: [(Make, usize, usize); 8] = [
        (dualpipe, 2, 4),
        (dualpipe, 4, 6),
        (dualpipe, 8, 14),
        (dualpipe_v, 1, 2),
        (dualpipe_v, 2, 4),
        (dualpipe_v, 4, 9),
        (one_f_one_b, 3, 5),
        (one_f_one_b, 4, 2),
    ];
    let both = |(make, num_ranks, num_microbatches): (Make, usize, usize)| {
        [Work::Training, Work::ForwardOnly].map(|work| make(num_ranks, num_microbatches, work).unwrap())
    };
    sizes.into_iter().flat_map(both).collect()
}

#[test]
fn every_order_of_the_devices_work_has_the_right_data() {
    for schedule in schedules() {
        for seed in crate::seeds(42) {
            let what = format!("{}, seed {seed}", schedule.title());
            let session = Session::new(seed, LAZY, 1, RANK_LOCAL);
            let (ranks, flow) = Setup::new(&session).inproc(&schedule);
            for _ in 0..3 {
                good_step(&ranks, &flow, &session, &what);
            }
            drop(ranks);
            session.assert_clean(&what);
        }
    }
}

#[test]
fn no_wait_of_the_executor_can_be_spared() {
    let mut num_waits = 0;
    for schedule in [
        dualpipe(4, 6, Work::Training),
        dualpipe_v(2, 6, Work::Training),
        one_f_one_b(3, 7, Work::Training),
        one_f_one_b(3, 7, Work::ForwardOnly),
    ] {
        let schedule = schedule.unwrap();
        let run = |skipped: Option<(usize, u64)>| {
            let session = Session::new(1, LAZY, 1, RANK_LOCAL);
            if let Some((rank, ordinal)) = skipped {
                session.skip_wait(rank, ordinal);
            }
            let mut setup = Setup::new(&session);
            setup.cuda.has_comm_stream = true;
            let (ranks, flow) = setup.inproc(&schedule);
            flow.step.fetch_add(1, Ordering::Relaxed);
            let enqueued = ranks.all(|_, rank| {
                rank.tasks.surround();
                let stepped = rank.executor.step(&mut rank.tasks);
                rank.tasks.surround();
                rank.tasks.trample();
                stepped
            });
            assert!(enqueued.iter().all(Result::is_ok), "{enqueued:?}");
            session.run();
            let counts: Vec<u64> = (0..schedule.num_ranks()).map(|rank| session.num_waits(rank)).collect();
            let is_found = session.report().contains("race") || !flow.wrong.lock().unwrap().is_empty();
            drop(ranks);
            (counts, is_found, session.report())
        };
        let (counts, is_found, report) = run(None);
        assert!(!is_found, "{report}");
        for (rank, count) in counts.iter().enumerate() {
            for ordinal in 0..*count {
                let (_, is_found, _) = run(Some((rank, ordinal)));
                let what = schedule.title();
                assert!(is_found, "{what}: wait {ordinal} of {count} of rank {rank} can be spared");
            }
            num_waits += count;
        }
    }
    println!("each of {num_waits} waits was missed");
}
