//! Text: golden drawings, to be checked by eye.

use dualpipe::ids::Direction;
use dualpipe::op::{Op, Task};
use dualpipe::placement::Placement;
use dualpipe::schedule::{dualpipe, dualpipe_v, one_f_one_b, Work};
use dualpipe::timeline::{Span, Timeline};
use expect_test::{expect, Expect};

use crate::unit_costs::{timeline, Costs, UNIT};
use crate::{empty, pass};

fn draws(timeline: &Timeline, want: Expect) {
    want.assert_eq(&timeline.to_text());
}

#[test]
fn dualpipe_of_4_ranks_and_8_microbatches() {
    let schedule = dualpipe(4, 8, Work::Training).unwrap();
    draws(
        &timeline(&schedule, UNIT),
        expect![[r#"
        dualpipe, 4 ranks, 8 micro-batches (simulated)
        0|F0 F1 F2 f0 i0 w0 f1 F3&b1    .  f2&B0    b2    .  f3&B1    b3    I2 W2 I3 W3 | idle 2 ms
        1|.  F0 f0 F1 f1 F2 b0    f2&B0    F3&b1    f3&B1    b2    B2    .  i3 I3 w3 W3 | idle 2 ms
        2|.  f0 F0 f1 F1 f2 B0    F2&b0    f3&B1    F3&b1    B2    b2    .  I3 i3 W3 w3 | idle 2 ms
        3|f0 f1 f2 F0 I0 W0 F1 f3&B1    .  F2&b0    B2    .  F3&b1    B3    i2 w2 i3 w3 | idle 2 ms
        makespan 26 ms, bubble 7.7 %, 3 columns = 1 ms
    "#]],
    );
}

#[test]
fn dualpipe_v_of_2_ranks_and_4_microbatches() {
    let schedule = dualpipe_v(2, 4, Work::Training).unwrap();
    draws(
        &timeline(&schedule, UNIT),
        expect![[r#"
        dualpipe_v, 2 ranks, 4 micro-batches (simulated)
        0|F0 F1 F2 f0 i0 w0 f1 F3&b1    .  f2&B0    b2    .  f3&B1    b3    I2 W2 I3 W3 | idle 2 ms
        1|.  F0 f0 F1 f1 F2 b0    f2&B0    F3&b1    f3&B1    b2    B2    .  i3 I3 w3 W3 | idle 2 ms
        makespan 26 ms, bubble 7.7 %, 3 columns = 1 ms
    "#]],
    );
}

#[test]
fn one_f_one_b_of_4_ranks_and_8_microbatches() {
    let schedule = one_f_one_b(4, 8, Work::Training).unwrap();
    draws(
        &timeline(&schedule, UNIT),
        expect![[r#"
        1f1b, 4 ranks, 8 micro-batches (simulated)
        0|F0 F1 F2 F3 .  .  .  .  .  .  B0    F4 B1    F5 B2    F6 B3    F7 B4    .  B5    .  B6    .  B7    | idle 9 ms
        1|.  F0 F1 F2 .  .  .  .  B0    F3 B1    F4 B2    F5 B3    F6 B4    F7 B5    .  B6    .  B7    .  .  | idle 9 ms
        2|.  .  F0 F1 .  .  B0    F2 B1    F3 B2    F4 B3    F5 B4    F6 B5    F7 B6    .  B7    .  .  .  .  | idle 9 ms
        3|.  .  .  F0 B0    F1 B1    F2 B2    F3 B3    F4 B4    F5 B5    F6 B6    F7 B7    .  .  .  .  .  .  | idle 9 ms
        makespan 33 ms, bubble 27.3 %, 3 columns = 1 ms
    "#]],
    );
}

#[test]
fn dualpipe_forward_only() {
    let schedule = dualpipe(4, 6, Work::ForwardOnly).unwrap();
    draws(
        &timeline(&schedule, UNIT),
        expect![[r#"
            dualpipe, 4 ranks, 6 micro-batches, forward only (simulated)
            0|F0 F1 F2 f0 .  f1 .  f2 | idle 2 ms
            1|.  F0 f0 F1 f1 F2 f2 .  | idle 2 ms
            2|.  f0 F0 f1 F1 f2 F2 .  | idle 2 ms
            3|f0 f1 f2 F0 .  F1 .  F2 | idle 2 ms
            makespan 8 ms, bubble 25.0 %, 3 columns = 1 ms
        "#]],
    );
}

#[test]
fn reductions_are_drawn_as_r() {
    let schedule = dualpipe(2, 4, Work::Training).unwrap();
    let costs = Costs { reduce: 2, ..UNIT };
    draws(
        &timeline(&schedule, costs),
        expect![[r#"
            dualpipe, 2 ranks, 4 micro-batches (simulated)
            0|F0 f0 F1 b0    f1&B0    b1    I1 W1 R     r     | idle 0 ns
            1|f0 F0 f1 B0    F1&b0    B1    i1 w1 r     R     | idle 0 ns
            makespan 16 ms, bubble 0.0 %, 3 columns = 1 ms
        "#]],
    );
}

#[test]
fn odd_times_are_drawn_to_scale_and_without_the_numbers_that_do_not_fit() {
    let schedule = dualpipe(4, 8, Work::Training).unwrap();
    let costs =
        Costs { unit_ns: 1, forward: 1009, input: 1013, weight: 883, pair: 2503, reduce: 0, message: 101 };
    let timeline = timeline(&schedule, costs);
    expect![[r#"
        dualpipe, 4 ranks, 8 micro-batches (simulated)
        0|F0 F1 F2  .f0 i0 w0 f1  F3&b1   ....f2&B0    b2    ...f3&B1   b3    I2  W2 .I3  W3 | idle 2.655 us
        1|...F0  f0 F1  f1 F2  b0    .f2&B0   F3&b1   .f3&B1   b2     B2    ...i3 I3  w3 W3 .| idle 2.655 us
        2|...f0  F0 f1  F1 f2  B0    .F2&b0   f3&B1   .F3&b1   B2     b2    ...I3 i3  W3 w3 .| idle 2.655 us
        3|f0 f1 f2  .F0 I0 W0 F1  f3&B1   ....F2&b0    B2    ...F3&b1   B3    i2  w2 .i3  w3 | idle 2.655 us
        makespan 24.689 us, bubble 10.8 %, 1 column = 297 ns
    "#]]
    .assert_eq(&timeline.to_text_within(100));
    expect![[r#"
        dualpipe, 4 ranks, 8 micro-batches (simulated)
        0|F.iw& .&b.& bWIW| idle 2.655 us
        1|FffFb& && bB..w.| idle 2.655 us
        2|fFFfB& && Bb..W.| idle 2.655 us
        3|f.IW& .&B.& Bwiw| idle 2.655 us
        makespan 24.689 us, bubble 10.8 %, 1 column = 1.543 us
    "#]]
    .assert_eq(&timeline.to_text_within(0));
}

#[test]
fn more_than_two_stages_of_a_rank_are_told_apart_by_number() {
    let f = |stage, microbatch, start_ns| Span {
        task: Task::Op(Op::F(pass(Direction::Down, stage, microbatch))),
        start_ns,
        end_ns: start_ns + 1,
    };
    let timeline = Timeline {
        spans: vec![vec![f(0, 0, 0), f(2, 0, 2), f(4, 0, 4)], vec![f(1, 0, 1), f(3, 0, 3), f(5, 0, 5)]],
        ..empty(Placement::interleaved(2, 3).unwrap())
    };
    draws(
        &timeline,
        expect![[r#"
        by hand (measured)
        0|0F0 .   2F0 .   4F0 .   | idle 3 ns
        1|.   1F0 .   3F0 .   5F0 | idle 3 ns
        makespan 6 ns, bubble 50.0 %, 4 columns = 1 ns
    "#]],
    );
}
