//! What the verifier says: faults drawn for people, the smallest counterexamples, and what it refuses to look at.

mod support;

use dualpipe::cost::{Costs, Link, StageCosts};
use dualpipe::ids::{Direction, Microbatch, Rank, Stage};
use dualpipe::op::{Action, Message, MessageKind, Op, Pass, Task};
use dualpipe::placement::Placement;
use dualpipe::program::lower;
use dualpipe::schedule::{dualpipe, gpipe, one_f_one_b, Schedule, Work};
use dualpipe::sim::MemoryCap;
use dualpipe::verify::{
    actions_of, receive_at_start, receive_before_use, verify, Kind, Mode, Options, Receives, Transport,
    FINDINGS_PER_KIND_MAX,
};
use dualpipe::ErrorKind;
use expect_test::{expect, Expect};
use proptest::prelude::*;

type Orders = Vec<Vec<Action>>;

fn shows(schedule: &Schedule, options: &Options<'_>, expected: Expect) {
    expected.assert_eq(&verify(schedule, options).unwrap().to_text());
}

fn with_orders(schedule: &Schedule, orders: Vec<Vec<Op>>) -> Schedule {
    let placement = schedule.placement().clone();
    Schedule::new("changed", placement, schedule.num_microbatches(), schedule.work(), orders).unwrap()
}

fn pass(stage: u16, microbatch: u32) -> Pass {
    Pass { direction: Direction::Down, stage: Stage(stage), microbatch: Microbatch(microbatch) }
}

fn position(order: &[Action], is_it: impl Fn(&Action) -> bool) -> usize {
    order.iter().position(is_it).unwrap()
}

fn is_receive_of(kind: MessageKind, microbatch: u32) -> impl Fn(&Action) -> bool {
    move |action| match action {
        Action::Receive { message, .. } => {
            message.kind == kind && message.pass.microbatch == Microbatch(microbatch)
        }
        _ => false,
    }
}

const RENDEZVOUS: Transport = Transport { mode: Mode::Rendezvous, is_tagged: true };

#[test]
fn a_deadlock_of_rendezvous_sends_is_a_circle_that_one_can_follow() {
    let schedule = one_f_one_b(2, 6, Work::Training).unwrap();
    let actions = receive_before_use(&schedule);
    let options = Options { actions: Some(&actions), transports: &[RENDEZVOUS], ..Options::default() };
    shows(
        &schedule,
        &options,
        expect![[r#"
        Deadlock: with rendezvous sends, rank 0 waits for rank 1, which waits for rank 0
          rank 0 at 3, SEND activation 0F1 to rank 1: waits for rank 1 at 4, RECEIVE activation 0F1 from rank 0
          rank 1 at 3, SEND gradient 1B0 to rank 0: waits for rank 0 at 4, RECEIVE gradient 1B0 from rank 1
          rank 0
                ...
               2  0F1
               3  SEND activation 0F1 to rank 1  <-- waits here, for rank 1
               4  RECEIVE gradient 1B0 from rank 1  <-- rank 1 waits for this
               5  0B0
          rank 1
                ...
               2  1B0
               3  SEND gradient 1B0 to rank 0  <-- waits here, for rank 0
               4  RECEIVE activation 0F1 from rank 0  <-- rank 0 waits for this
               5  1F1
        The same with micro-batches 0, 1 of direction 0, numbered from 0:
        0| 0F0 0F1 0B0 0B1
        1| 1F0 1B0 1F1 1B1
        with rendezvous sends, rank 0 waits for rank 1, which waits for rank 0
          rank 0 at 3, SEND activation 0F1 to rank 1: waits for rank 1 at 4, RECEIVE activation 0F1 from rank 0
          rank 1 at 3, SEND gradient 1B0 to rank 0: waits for rank 0 at 4, RECEIVE gradient 1B0 from rank 1
          rank 0
                ...
               2  0F1
               3  SEND activation 0F1 to rank 1  <-- waits here, for rank 1
               4  RECEIVE gradient 1B0 from rank 1  <-- rank 1 waits for this
               5  0B0
          rank 1
                ...
               2  1B0
               3  SEND gradient 1B0 to rank 0  <-- waits here, for rank 0
               4  RECEIVE activation 0F1 from rank 0  <-- rank 0 waits for this
               5  1F1
    "#]],
    );
}

#[test]
fn ops_that_need_one_another_are_shown_in_the_schedule_alone() {
    let schedule = gpipe(3, 5, Work::Training).unwrap();
    let mut orders = schedule.orders().to_vec();
    let late = orders[0].iter().position(|&op| op == Op::F(pass(0, 3))).unwrap();
    let after = orders[0].iter().position(|&op| op == Op::B(pass(0, 1))).unwrap();
    let op = orders[0].remove(late);
    orders[0].insert(after, op);
    let early = orders[2].iter().position(|&op| op == Op::B(pass(2, 1))).unwrap();
    let op = orders[2].remove(early);
    orders[2].push(op);
    shows(
        &with_orders(&schedule, orders),
        &Options::default(),
        expect![[r#"
        DependencyCycle: whatever the transport, rank 0 waits for rank 1, which waits for rank 0
          rank 0 at 4, 0B0: waits for rank 1 at 5, 1B0
          rank 1 at 3, 1F3: waits for rank 0 at 6, 0F3
          rank 0
                ...
               3  0F4
               4  0B0  <-- waits here, for rank 1
               5  0B1
               6  0F3  <-- rank 1 waits for this
               7  0B2
          rank 1
                ...
               2  1F2
               3  1F3  <-- waits here, for rank 0
               4  1F4
               5  1B0  <-- rank 0 waits for this
               6  1B1
        The same with micro-batches 0, 3 of direction 0, numbered from 0:
        0| 0F0 0B0 0F1 0B1
        1| 1F0 1F1 1B0 1B1
        2| 2F0 2F1 2B0 2B1
        whatever the transport, rank 0 waits for rank 1, which waits for rank 0
          rank 0 at 1, 0B0: waits for rank 1 at 2, 1B0
          rank 1 at 1, 1F1: waits for rank 0 at 2, 0F1
          rank 0
               0  0F0
               1  0B0  <-- waits here, for rank 1
               2  0F1  <-- rank 1 waits for this
               3  0B1
          rank 1
               0  1F0
               1  1F1  <-- waits here, for rank 0
               2  1B0  <-- rank 0 waits for this
               3  1B1
    "#]],
    );
}

#[test]
fn a_swapped_receive_shows_what_comes_and_what_is_meant() {
    let schedule = gpipe(2, 8, Work::Training).unwrap();
    let mut actions = receive_at_start(&schedule);
    actions[1].swap(5, 6);
    let options = Options { actions: Some(&actions), ..Options::default() };
    shows(
        &schedule,
        &options,
        expect![[r#"
        FifoMismatch: message 5 of rank 0 to rank 1 is activation 0F5, received as activation 0F6: swapped silently
          rank 0 sends
               4, at   17: activation 0F4
               5, at   19: activation 0F5  <-- comes
               6, at   21: activation 0F6
          rank 1 receives
               4, at    4: activation 0F4
               5, at    5: activation 0F6  <-- is meant
               6, at    6: activation 0F5
        The same with micro-batches 5, 6 of direction 0, numbered from 0:
        0| 0F0 0F1 0B0 0B1
        1| 1F0 1F1 1B0 1B1
        message 0 of rank 0 to rank 1 is activation 0F0, received as activation 0F1: swapped silently
          rank 0 sends
               0, at    3: activation 0F0  <-- comes
               1, at    5: activation 0F1
          rank 1 receives
               0, at    0: activation 0F1  <-- is meant
               1, at    1: activation 0F0
        Deadlock: with blocking grouped exchanges, rank 0 waits for rank 1, which waits for rank 0
          rank 0 at 0, RECEIVE gradient 1B0 from rank 1: waits for rank 1 at 17, SEND gradient 1B0 to rank 0
          rank 1 at 0, RECEIVE activation 0F0 from rank 0: waits for rank 0 at 9, SEND activation 0F0 to rank 1
          rank 0
               0  RECEIVE gradient 1B0 from rank 1  <-- waits here, for rank 1
               1  RECEIVE gradient 1B1 from rank 1
                ...
               8  0F0
               9  SEND activation 0F0 to rank 1  <-- rank 1 waits for this
              10  0F1
          rank 1
               0  RECEIVE activation 0F0 from rank 0  <-- waits here, for rank 0
               1  RECEIVE activation 0F1 from rank 0
                ...
              16  1B0
              17  SEND gradient 1B0 to rank 0  <-- rank 0 waits for this
              18  1B1
        The same with micro-batches 0 of direction 0, numbered from 0:
        0| 0F0 0B0
        1| 1F0 1B0
        with blocking grouped exchanges, rank 0 waits for rank 1, which waits for rank 0
          rank 0 at 0, RECEIVE gradient 1B0 from rank 1: waits for rank 1 at 3, SEND gradient 1B0 to rank 0
          rank 1 at 0, RECEIVE activation 0F0 from rank 0: waits for rank 0 at 2, SEND activation 0F0 to rank 1
          rank 0
               0  RECEIVE gradient 1B0 from rank 1  <-- waits here, for rank 1
               1  0F0
               2  SEND activation 0F0 to rank 1  <-- rank 1 waits for this
               3  0B0
          rank 1
               0  RECEIVE activation 0F0 from rank 0  <-- waits here, for rank 0
               1  1F0
               2  1B0
               3  SEND gradient 1B0 to rank 0  <-- rank 0 waits for this
    "#]],
    );
}

#[test]
fn every_other_fault_names_its_place() {
    let schedule = dualpipe(2, 4, Work::Training).unwrap();
    let lowered: Orders = lower(&schedule).unwrap().iter().map(actions_of).collect();
    let report = |change: &dyn Fn(&mut Orders)| {
        let mut actions = lowered.clone();
        change(&mut actions);
        let options = Options { actions: Some(&actions), counterexamples: false, ..Options::default() };
        let report = verify(&schedule, &options).unwrap();
        let findings = report.findings.iter().filter(|finding| finding.kind != Kind::Deadlock);
        findings.map(|finding| format!("{:?}: {}\n", finding.kind, finding.text)).collect::<String>()
    };
    let mut text = String::new();
    let first_send = position(&lowered[0], |action| matches!(action, Action::Send { .. }));
    let is_reduction = |action: &Action| matches!(action, Action::Run(Task::ReduceGrads(_)));
    let reduction = position(&lowered[0], is_reduction);
    let receive = position(&lowered[0], is_receive_of(MessageKind::Activation, 0));
    text += &report(&|actions| {
        actions[0].remove(first_send);
    });
    text += &report(&|actions| actions[0].swap(first_send, first_send - 1));
    text += &report(&|actions| {
        let action = actions[0].remove(receive);
        actions[0].push(action);
    });
    text += &report(&|actions| {
        let action = actions[0][receive];
        actions[0].insert(receive, action);
    });
    text += &report(&|actions| {
        let Action::Send { message, .. } = actions[0][first_send] else { panic!() };
        actions[0].insert(first_send, Action::WaitSend(message));
        actions[0].insert(first_send, Action::Send { message, to: Rank(7) });
    });
    text += &report(&|actions| {
        actions[0].remove(reduction);
    });
    text += &report(&|actions| {
        let action = actions[0].remove(reduction);
        actions[0].insert(3, action);
        actions[0].insert(4, action);
    });
    text += &report(&|actions| {
        let last = actions[0].iter().rposition(is_reduction).unwrap();
        let action = actions[0].remove(reduction);
        actions[0].insert(last, action);
    });
    text += &report(&|actions| {
        actions[0].retain(|action| *action != Action::Run(Task::Op(schedule.orders()[0][2])))
    });
    expect![[r#"
        WaitWithoutSend: rank 0, position 17 (WAIT_SEND activation 0F0): no send before this is still to be waited for
        MissingMessage: activation 0F0: rank 0 does not send it, rank 1 receives it at position 2
        SendBeforeMade: rank 0, position 0 (SEND activation 0F0 to rank 1): it is made only later
        ReceiveAfterUse: rank 0, position 21 (RECEIVE activation 0f0 from rank 1): the op that needs it is before this
        FifoMismatch: message 0 of rank 1 to rank 0 is activation 0f0, received as activation 0f1: swapped silently
          rank 1 sends
               0, at    1: activation 0f0  <-- comes
               1, at    5: activation 0f1
          rank 0 receives
               0, at    5: activation 0f1  <-- is meant
               1, at    8: gradient 1B0
        DoubledMessage: rank 0, position 3 (RECEIVE activation 0f0 from rank 1): the first time was at position 2
        ForeignMessage: rank 0, position 1 (SEND activation 0F0 to rank 7): it goes from rank 0 to rank 1
        MissingReduction: rank 0 has no REDUCE_GRADS 0/0
        DoubledReduction: rank 0, position 4 (REDUCE_GRADS 0/0): the first time was at position 3
        PrematureReduction: rank 0, position 4 (REDUCE_GRADS 0/0): its last weight gradient is at 17
        PrematureReduction: rank 0, position 3 (REDUCE_GRADS 0/0): its last weight gradient is at 17
        CrossedReductions: ranks 0 and 1 wait for each other
          rank 0: stage 1 at 16, then stage 0 at 17
          rank 1: stage 0 at 16, then stage 1 at 17
        TaskOrder: rank 0, position 6: runs 1b0 where the schedule has 0F1
    "#]].assert_eq(&text);
}

#[test]
fn a_cap_names_the_first_op_that_is_too_much() {
    let schedule = gpipe(2, 40, Work::Training).unwrap();
    let options = Options { cap: MemoryCap::Activations(vec![40, 3]), ..Options::default() };
    shows(
        &schedule,
        &options,
        expect![[r#"
        ExceedsCap: rank 1, position 3 (1F3): exceeds the cap of 3; the peak is 40 activations
        The same with micro-batches 0, 1, 2, 3 of direction 0, numbered from 0:
        0| 0F0 0F1 0F2 0F3 0B0 0B1 0B2 0B3
        1| 1F0 1F1 1F2 1F3 1B0 1B1 1B2 1B3
        rank 1, position 3 (1F3): exceeds the cap of 3; the peak is 4 activations
    "#]],
    );
    let stage = StageCosts { activation_bytes: 10, parameter_bytes: 100, ..StageCosts::default() };
    let costs = Costs::new(vec![stage], Link::default()).unwrap();
    let options = Options { costs: Some(&costs), cap: MemoryCap::Bytes(vec![99, 500]), ..Options::default() };
    shows(
        &schedule,
        &options,
        expect![[r#"
        ExceedsCap: rank 0: its parameters alone exceed the cap of 99; the peak is 500 bytes
        The same with micro-batches 0 of direction 0, numbered from 0:
        0| 0F0 0B0
        1| 1F0 1B0
        rank 0: its parameters alone exceed the cap of 99; the peak is 110 bytes
    "#]],
    );
    let options = Options { costs: Some(&costs), ..Options::default() };
    assert_eq!(verify(&schedule, &options).unwrap().peak_bytes, Some(vec![500, 500]));
}

#[test]
fn published_orders_say_which_transport_they_suit_and_where_receives_must_be() {
    let schedule = one_f_one_b(4, 8, Work::Training).unwrap();
    let report = verify(&schedule, &Options::default()).unwrap();
    let mut text = String::new();
    for receives in [Receives::Lowered, Receives::BeforeUse, Receives::AtStart] {
        for mode in Mode::ALL {
            let of_it = report.trials.iter().filter(|t| t.receives == receives && t.transport.mode == mode);
            let good = of_it.filter(|trial| trial.fault.is_none()).count();
            text += &format!("{receives:?} {mode:?}: {good} of 2\n");
        }
    }
    assert!(report.is_valid());
    expect![[r#"
        Lowered Asynchronous: 2 of 2
        Lowered Rendezvous: 0 of 2
        Lowered GroupedBlocking: 2 of 2
        BeforeUse Asynchronous: 2 of 2
        BeforeUse Rendezvous: 0 of 2
        BeforeUse GroupedBlocking: 2 of 2
        AtStart Asynchronous: 2 of 2
        AtStart Rendezvous: 2 of 2
        AtStart GroupedBlocking: 0 of 2
    "#]]
    .assert_eq(&text);
}

#[test]
fn a_counterexample_keeps_the_micro_batches_that_matter() {
    let schedule = dualpipe(4, 40, Work::Training).unwrap();
    let mut orders = schedule.orders().to_vec();
    // Rank 2 forgets a backward for the weights of micro-batch 17.
    let is_it = |op: &Op| op.backward_weight().is_some_and(|pass| pass.microbatch == Microbatch(17));
    let at = orders[2].iter().position(is_it).unwrap();
    orders[2].remove(at);
    let report = verify(&with_orders(&schedule, orders), &Options::default()).unwrap();
    let smaller = report.findings[0].counterexample.as_ref().unwrap();
    assert!(smaller.is_smallest);
    assert!(smaller.microbatches.iter().flatten().any(|&i| i == Microbatch(17)));
    assert!(smaller.schedule.num_microbatches() <= 2, "{}", smaller.to_text());
    let again = verify(&smaller.schedule, &Options::default()).unwrap();
    assert_eq!(again.findings[0].kind, report.findings[0].kind);
}

#[test]
fn of_many_findings_the_first_are_listed_and_the_rest_counted() {
    let schedule = gpipe(2, 100, Work::Training).unwrap();
    let empty = with_orders(&schedule, vec![Vec::new(); 2]);
    let report = verify(&empty, &Options::default()).unwrap();
    assert_eq!(report.findings.len(), FINDINGS_PER_KIND_MAX);
    assert_eq!(report.findings.len() + report.num_omitted, 2 * 100 * 3);
    assert!(report.trials.is_empty());
}

#[test]
fn arguments_that_make_no_sense_are_errors() {
    let schedule = gpipe(3, 2, Work::Training).unwrap();
    let none: Orders = Vec::new();
    let two = Costs::new(vec![StageCosts::default(); 2], Link::default()).unwrap();
    let options = Options::default;
    for (options, text) in [
        (
            Options { actions: Some(&none), ..options() },
            "verify: the number of action orders is 0, must be 3, one per rank",
        ),
        (
            Options { costs: Some(&two), ..options() },
            "costs: the number of stages is 2, must be 1 or 3, the schedule's stages",
        ),
        (
            Options { cap: MemoryCap::Bytes(vec![1]), ..options() },
            "verify: costs is none, must be there for a cap in bytes",
        ),
        (
            Options { cap: MemoryCap::Activations(vec![1, 2]), ..options() },
            "memory cap: the number of entries is 2, must be 1 or 3, one for each rank",
        ),
    ] {
        let error = verify(&schedule, &options).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::InvalidArgument, text));
    }
}

#[test]
fn two_copies_on_one_rank_need_no_other_rank_to_reduce() {
    let schedule = Schedule::new(
        "both copies",
        Placement::bidirectional(1).unwrap(),
        2,
        Work::Training,
        vec![Direction::ALL
            .iter()
            .flat_map(|&direction| {
                let pass = Pass { direction, ..pass(0, 0) };
                [Op::F(pass), Op::B(pass)]
            })
            .collect()],
    )
    .unwrap();
    let actions = receive_before_use(&schedule);
    let options = Options { actions: Some(&actions), ..Options::default() };
    let report = verify(&schedule, &options).unwrap();
    assert!(report.is_valid(), "{}", report.to_text());
}

fn any_pass() -> impl Strategy<Value = Pass> {
    let stage = prop_oneof![0u16..4, Just(u16::MAX)];
    let microbatch = prop_oneof![0u32..4, Just(u32::MAX)];
    (any::<bool>(), stage, microbatch).prop_map(|(up, stage, microbatch)| Pass {
        direction: Direction::ALL[usize::from(up)],
        stage: Stage(stage),
        microbatch: Microbatch(microbatch),
    })
}

fn any_action() -> impl Strategy<Value = Action> {
    let op = (0..5, any_pass(), any_pass()).prop_map(|(kind, p, q)| match kind {
        0 => Op::F(p),
        1 => Op::B(p),
        2 => Op::I(p),
        3 => Op::W(p),
        _ => Op::FB(p, q),
    });
    (0usize..8, op, any_pass(), prop_oneof![0u32..4, Just(u32::MAX)]).prop_map(|(kind, op, pass, peer)| {
        let kinds = [MessageKind::Activation, MessageKind::Gradient];
        let message = Message { kind: kinds[kind % 2], pass };
        match kind {
            0 | 1 => Action::Send { message, to: Rank(peer) },
            2 | 3 => Action::Receive { message, from: Rank(peer) },
            4 => Action::WaitSend(message),
            5 => Action::Run(Task::ReduceGrads(pass.copy())),
            _ => Action::Run(Task::Op(op)),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn garbage_gets_findings_and_never_panics(
        two in any::<bool>(),
        training in any::<bool>(),
        n in 1usize..6,
        actions in prop::collection::vec(prop::collection::vec(any_action(), 0..20), 3),
    ) {
        let placement = if two { Placement::bidirectional(3) } else { Placement::v(3) }.unwrap();
        let work = if training { Work::Training } else { Work::ForwardOnly };
        let ops = |order: &Vec<Action>| {
            let ops = order.iter().filter_map(|action| match action {
                Action::Run(Task::Op(op)) => Some(*op),
                _ => None,
            });
            ops.collect::<Vec<Op>>()
        };
        let orders = actions.iter().map(ops).collect();
        let schedule = Schedule::new("garbage", placement, n, work, orders).unwrap();
        for actions in [None, Some(&actions[..])] {
            let report = verify(&schedule, &Options { actions, ..Options::default() }).unwrap();
            prop_assert!(!report.is_valid());
            prop_assert!(!report.to_text().is_empty());
            for finding in &report.findings {
                if let Some(smaller) = &finding.counterexample {
                    prop_assert!(smaller.schedule.num_microbatches() <= n);
                }
            }
        }
    }
}
