//! SVG: every task a box, where and as wide as its times say.

use dualpipe::ids::Direction;
use dualpipe::op::{Op, Task};
use dualpipe::placement::Placement;
use dualpipe::schedule::{dualpipe, dualpipe_v, one_f_one_b, Work};
use dualpipe::timeline::{svg, Source, Span, Timeline};
use roxmltree::{Document, Node};

use crate::unit_costs::{timeline, Costs, UNIT};
use crate::{children, empty, number, pass, tasks};

#[test]
fn every_task_is_one_box_with_its_number_inside() {
    for schedule in [
        dualpipe(8, 20, Work::Training),
        dualpipe(16, 48, Work::Training),
        dualpipe_v(4, 10, Work::Training),
        one_f_one_b(4, 8, Work::Training),
        dualpipe(4, 6, Work::ForwardOnly),
    ] {
        let costs = Costs { reduce: 1, ..UNIT };
        let timeline = timeline(&schedule.unwrap(), costs);
        let svg = timeline.to_svg();
        let document = Document::parse(&svg).unwrap();
        let boxes = tasks(&document);
        let spans: Vec<&Span> = timeline.spans.iter().flatten().collect();
        assert_eq!(boxes.len(), spans.len());
        for (node, span) in boxes.iter().zip(spans) {
            let want = match span.task {
                Task::ReduceGrads(_) => vec!["R".to_owned()],
                Task::Op(Op::FB(f, b)) => vec![f.microbatch.to_string(), b.microbatch.to_string()],
                Task::Op(Op::F(p) | Op::B(p) | Op::I(p) | Op::W(p)) => {
                    vec![p.microbatch.to_string()]
                }
            };
            let texts: Vec<Node> = children(node, "text").collect();
            let numbers: Vec<&str> = texts.iter().filter_map(Node::text).collect();
            assert_eq!(numbers, want, "{}", span.task);
            for (rect, text) in children(node, "rect").zip(texts) {
                assert_inside(rect, text, &svg);
            }
        }
    }
}

#[test]
fn a_box_is_where_its_times_are() {
    let schedule = dualpipe(4, 8, Work::Training).unwrap();
    let timeline = timeline(&schedule, UNIT);
    let svg = timeline.to_svg();
    let document = Document::parse(&svg).unwrap();
    let rects: Vec<(f64, f64)> = tasks(&document)
        .iter()
        .flat_map(|node| children(node, "rect").take(1).collect::<Vec<_>>())
        .map(|rect| (number(rect, "x"), number(rect, "width")))
        .collect();
    let (left, per_unit) = rects[0];
    for (span, (x, width)) in timeline.spans.iter().flatten().zip(rects) {
        let units = |ns: u64| ns as f64 / UNIT.unit_ns as f64;
        assert!((x - left - units(span.start_ns) * per_unit).abs() < 0.5, "{}", span.task);
        assert!((width - units(span.end_ns - span.start_ns) * per_unit).abs() < 0.5, "{}", span.task);
    }
}

#[test]
fn compared_timelines_have_one_scale() {
    let schedule = dualpipe(4, 8, Work::Training).unwrap();
    let predicted = timeline(&schedule, UNIT);
    let measured =
        Timeline { source: Source::Recorded, origin_ns: 0, ..timeline(&schedule, Costs { pair: 4, ..UNIT }) };
    let svg = svg::compare(&[&predicted, &measured]);
    let document = Document::parse(&svg).unwrap();
    let boxes = tasks(&document);
    let count: usize = predicted.spans.iter().map(Vec::len).sum();
    assert_eq!(boxes.len(), 2 * count);
    let first = |i: usize| children(&boxes[i], "rect").next().unwrap();
    assert_eq!(number(first(0), "x"), number(first(count), "x"));
    assert_eq!(number(first(0), "width"), number(first(count), "width"));
    assert!(number(first(0), "y") < number(first(count), "y"));
    assert!(svg.contains("simulated · makespan 26 ms") && svg.contains("measured · makespan"));
    Document::parse(&svg::compare(&[])).unwrap();
}

#[test]
fn a_huge_timeline_gives_a_picture_of_bounded_size() {
    let f = |i: u64| Span {
        task: Task::Op(Op::F(pass(Direction::ALL[i as usize % 2], 0, i as u32))),
        start_ns: 10 * i,
        end_ns: 10 * i + 9,
    };
    let timeline = Timeline {
        spans: vec![(0..30_000).map(f).collect(); 8],
        ..empty(Placement::bidirectional(8).unwrap())
    };
    let svg = timeline.to_svg();
    assert!(svg.len() < 2_000_000, "{}", svg.len());
    let document = Document::parse(&svg).unwrap();
    assert!(tasks(&document).is_empty());
    assert!(document.descendants().any(|n| n.attribute("class") == Some("F0")));
    let wide: usize = timeline.to_text_within(usize::MAX).len();
    assert!(wide < 100_000, "{wide}");
}

/// The text, digits 0.62 em wide and 0.72 em high, lies within the box.
fn assert_inside(rect: Node, text: Node, svg: &str) {
    let between = |s: &str, before: &str| -> f64 {
        let rest = &s[s.find(before).unwrap() + before.len()..];
        rest[..rest.find("px").unwrap()].parse().unwrap()
    };
    let size = match text.attribute("style") {
        Some(style) => between(style, "font-size:"),
        None if text.attribute("class").unwrap().contains("half") => between(svg, ".half{font-size:"),
        None => between(svg, ".n{text-anchor:middle;font-size:"),
    };
    let half_width = 0.31 * size * text.text().unwrap().len() as f64;
    let (x, y) = (number(text, "x"), number(text, "y"));
    let [left, top, width, height] = ["x", "y", "width", "height"].map(|a| number(rect, a));
    assert!(x - half_width >= left && x + half_width <= left + width);
    assert!(y - 0.72 * size >= top && y <= top + height);
}
