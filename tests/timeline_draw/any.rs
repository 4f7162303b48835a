//! All three forms of whatever a timeline may hold: nothing, no time, all the time there is, times in no order.

use dualpipe::ids::{Direction, Rank};
use dualpipe::op::{Message, MessageKind, Op, Pass, Task};
use dualpipe::placement::Placement;
use dualpipe::schedule::{dualpipe, Work};
use dualpipe::timeline::{MessageSpan, Span, Timeline};
use proptest::prelude::*;
use roxmltree::Document;
use serde_json::Value;

use crate::unit_costs::{timeline, UNIT};
use crate::{empty, number, pass, tasks};

#[test]
fn any_title_is_shown_as_it_is() {
    for title in
        ["<script>&amp;\"']]>", "\0\u{b}\u{fffe}", "", "\u{1b}[2J\nsecond line", &"long ".repeat(500)]
    {
        let schedule = dualpipe(2, 4, Work::Training).unwrap();
        let timeline = Timeline { title: title.to_owned(), ..timeline(&schedule, UNIT) };
        let svg = timeline.to_svg();
        let document = Document::parse(&svg).unwrap();
        assert_eq!(tasks(&document).len(), timeline.spans.iter().map(Vec::len).sum::<usize>());
        assert_eq!(document.descendants().filter(|n| n.has_tag_name("script")).count(), 0);
        assert_eq!(timeline.to_text().lines().count(), 4, "{title:?}");
        assert!(!timeline.to_text().contains('\u{1b}'));
        let trace: Value = serde_json::from_str(&timeline.to_trace()).unwrap();
        assert_eq!(trace["otherData"]["title"], title);
    }
}

#[test]
fn nothing_at_all_is_drawn_too() {
    let placement = Placement::linear(2).unwrap();
    let task = Task::Op(Op::F(pass(Direction::Down, 0, 0)));
    let span = |start_ns, end_ns| Span { task, start_ns, end_ns };
    for spans in [
        vec![],
        vec![vec![], vec![]],
        vec![vec![span(0, 0)], vec![]],
        vec![vec![span(5, 5)], vec![span(5, 5)]],
        vec![vec![span(0, u64::MAX)], vec![span(u64::MAX, u64::MAX)]],
        vec![vec![span(u64::MAX - 1, u64::MAX); 3], vec![span(0, u64::MAX); 3]],
        vec![vec![span(9, 3)], vec![]],
    ] {
        all_forms_hold(&Timeline { spans, ..empty(placement.clone()) });
    }
}

proptest! {
    #[test]
    fn whatever_was_recorded_is_drawn(
        spans in prop::collection::vec(prop::collection::vec(any_span(), 0..12), 0..4),
        messages in prop::collection::vec((any_time(), any_time(), 0u32..4, 0u32..4, any_pass()), 0..8),
        columns in prop_oneof![0usize..400, Just(usize::MAX)],
    ) {
        let messages = messages.into_iter().map(|(start_ns, end_ns, from, to, pass)| MessageSpan {
            message: Message { kind: MessageKind::Activation, pass },
            from: Rank(from),
            to: Rank(to),
            start_ns,
            end_ns,
        });
        let timeline = Timeline {
            spans,
            messages: messages.collect(),
            ..empty(Placement::bidirectional(4).unwrap())
        };
        all_forms_hold(&timeline);
        let text = timeline.to_text_within(columns);
        for line in text.lines().filter(|line| line.contains('|')) {
            prop_assert!(line.len() <= columns.max(60), "{line}");
        }
    }
}

fn all_forms_hold(timeline: &Timeline) {
    let svg = timeline.to_svg();
    let document = Document::parse(&svg).unwrap();
    let count: usize = timeline.spans.iter().map(Vec::len).sum();
    assert_eq!(tasks(&document).len(), count);
    for rect in document.descendants().filter(|n| n.has_tag_name("rect")) {
        assert!(number(rect, "width") >= 0.0 && number(rect, "height") > 0.0);
    }
    let trace: Value = serde_json::from_str(&timeline.to_trace()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let complete = events.iter().filter(|e| e["ph"] == "X").count();
    assert_eq!(complete, count + timeline.messages.len());
    let lines: Vec<String> = timeline.to_text().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), timeline.spans.len() + 2);
}

fn any_span() -> impl Strategy<Value = Span> {
    let task = (any_pass(), any_pass(), 0..6).prop_map(|(p, q, kind)| match kind {
        0 => Task::Op(Op::F(p)),
        1 => Task::Op(Op::B(p)),
        2 => Task::Op(Op::I(p)),
        3 => Task::Op(Op::W(p)),
        4 => Task::Op(Op::FB(p, q)),
        _ => Task::ReduceGrads(p.copy()),
    });
    (task, any_time(), any_time()).prop_map(|(task, start_ns, end_ns)| Span { task, start_ns, end_ns })
}

fn any_time() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..30, 0u64..1_000_000_000, any::<u64>(), Just(u64::MAX)]
}

/// Also passes that the placement does not have.
fn any_pass() -> impl Strategy<Value = Pass> {
    let stage = prop_oneof![0u16..4, any::<u16>()];
    (0usize..2, stage, any::<u32>())
        .prop_map(|(direction, stage, microbatch)| pass(Direction::ALL[direction], stage, microbatch))
}
