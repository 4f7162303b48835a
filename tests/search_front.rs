//! The front of memory and time, as text and as a picture.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use dualpipe::cost::{Costs, Link, StageCosts};
use dualpipe::placement::Placement;
use dualpipe::schedule::{dualpipe, Work};
use dualpipe::search::{
    memory_time_front, Caps, Effort, Front, FrontPoint, Problem, PublishedPoint, FRONT_POINTS_MAX,
};
use dualpipe::sim::{simulate, MemoryCap};
use expect_test::expect;
use proptest::prelude::*;

const NONE: Effort = Effort { iterations: 0, time: None, seed: 1 };

fn problem(placement: Placement, num_microbatches: usize, overlapped_ns: u64) -> Problem {
    let stage = StageCosts {
        forward_ns: 10_000,
        input_ns: 10_000,
        weight_ns: 10_000,
        overlapped_ns,
        output_bytes: 0,
        activation_bytes: 1 << 30,
        parameter_bytes: 10 << 30,
    };
    let costs = Costs::new(vec![stage], Link::default()).unwrap();
    Problem { placement, num_microbatches, costs, cap: MemoryCap::Unlimited }
}

fn front(problem: &Problem, caps: &Caps) -> Front {
    memory_time_front(problem, caps, &NONE, &mut |_, _| ControlFlow::Continue(())).unwrap()
}

/// The makespans known for 8 ranks and 20 micro-batches without overlap.
fn recorded() -> Front {
    let schedule = dualpipe(8, 20, Work::Training).unwrap();
    let point = |(cap, makespan, bound): (u64, u64, u64)| FrontPoint {
        cap,
        peak: cap,
        makespan_ns: makespan * 10_000,
        lower_bound_ns: bound * 10_000,
        started_from: if cap < 9 { "constructed".into() } else { "dualpipe".into() },
        schedule: schedule.clone(),
        peak_live: vec![cap as usize; 8],
        peak_memory_bytes: vec![0; 8],
    };
    let published = |(name, peak, makespan): (&str, u64, u64)| PublishedPoint {
        name: name.to_owned(),
        peak,
        makespan_ns: makespan * 10_000,
    };
    Front {
        title: "8 ranks, 20 micro-batches".to_owned(),
        is_bytes: false,
        points: [(4, 71, 66), (5, 68, 64), (6, 65, 63), (7, 64, 63), (8, 63, 63)].map(point).into(),
        published: [("chimera", 8, 80), ("dualpipe", 9, 66), ("another & <one>", 9, 66)]
            .map(published)
            .into(),
        is_stopped: false,
    }
}

#[test]
fn the_text_of_a_front() {
    expect![[r#"
        8 ranks, 20 micro-batches: memory cap on each rank in activations, times in us
        activations  peak  makespan    bound   gap  from             630                                   800
                  4     4   710.000  660.000  7.6%  constructed             |============
                  5     5   680.000  640.000  6.2%  constructed        |==========
                  6     6   650.000  630.000  3.2%  constructed      |=====
                  7     7   640.000  630.000  1.6%  constructed      |==
                  8     8   630.000  630.000  0.0%  constructed      |
                        8   800.000                 chimera                                                  o
                        9   660.000                 dualpipe                o
                        9   660.000                 another & <one>         o
        | no schedule is faster, = the plan, o published
    "#]]
    .assert_eq(&recorded().to_text());
}

#[test]
fn the_picture_has_title_axes_lines_and_named_dots() {
    let svg = recorded().to_svg();
    let document = roxmltree::Document::parse(&svg).unwrap();
    let of = |name: &'static str| document.descendants().filter(move |node| node.has_tag_name(name));
    let texts: BTreeSet<&str> = of("text").filter_map(|node| node.text()).collect();
    for text in [
        "Memory and time: 8 ranks, 20 micro-batches",
        "makespan in us",
        "most memory of a rank in activations",
        "no schedule is faster",
        "chimera",
        "dualpipe, another & <one>",
        "700",
        "8",
    ] {
        assert!(texts.contains(text), "{text} is not in {texts:?}");
    }
    // A mark for each cap with what it is, and one dot for the two on one spot besides the legend's.
    let titles: Vec<&str> = of("title").filter_map(|node| node.text()).collect();
    assert!(
        titles.contains(&"cap 7 activations: 640.000 us, bound 630.000 us, from constructed"),
        "{titles:?}"
    );
    assert_eq!((of("rect").count(), of("circle").count()), (1 + 5, 2 + 1));
    let dot = |name: &str| {
        let circle = of("circle").find(|node| {
            node.children().any(|child| child.text().is_some_and(|text| text.starts_with(name)))
        });
        ["cx", "cy"].map(|at| circle.unwrap().attribute(at).unwrap().parse::<f64>().unwrap())
    };
    let ([chimera_x, chimera_y], [dualpipe_x, dualpipe_y]) = (dot("chimera"), dot("dualpipe"));
    assert!(chimera_x < dualpipe_x && chimera_y < dualpipe_y, "more memory is right, faster is below");
    let xs = document.descendants().filter_map(|node| node.attribute("x")).map(|x| x.parse::<f64>().unwrap());
    assert!(xs.into_iter().all(|x| (0.0..=760.0).contains(&x)));
}

#[test]
fn pictures_of_odd_fronts_are_pictures() {
    let one = Front { points: recorded().points[..1].to_vec(), published: Vec::new(), ..recorded() };
    let none = Front { points: Vec::new(), ..one.clone() };
    let mut bytes = Front { is_bytes: true, ..recorded() };
    bytes.points.iter_mut().for_each(|point| point.cap <<= 28);
    bytes.published.iter_mut().for_each(|published| published.peak <<= 28);
    for front in [one, none, bytes.clone()] {
        let svg = front.to_svg();
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        roxmltree::Document::parse(&svg).unwrap();
        assert!(front.to_text().starts_with("8 ranks, 20 micro-batches: memory cap on each rank in"));
    }
    assert!(bytes.to_text().contains("GiB") && bytes.to_svg().contains("most memory of a rank in GiB"));
}

#[test]
fn published_schedules_are_points_of_the_front_where_nothing_is_searched() {
    let front = front(&problem(Placement::linear(4).unwrap(), 8, 30_000), &Caps::Activations(vec![4, 7, 8]));
    let names: Vec<(&str, u64)> = front.published.iter().map(|p| (p.name.as_str(), p.peak)).collect();
    assert!(names.contains(&("gpipe", 8)) && names.contains(&("zb_h2", 7)) && names.contains(&("zb_h1", 4)));
    for point in &front.points {
        let best =
            front.published.iter().filter(|p| p.peak <= point.cap).map(|p| p.makespan_ns).min().unwrap();
        assert!(point.makespan_ns <= best, "cap {}: {} > {best}", point.cap, point.makespan_ns);
    }
}

#[test]
fn stopped_every_cap_still_has_a_point() {
    let problem = problem(Placement::linear(4).unwrap(), 8, 25_000);
    let effort = Effort { iterations: 1000, ..NONE };
    let mut calls = 0;
    let front = memory_time_front(&problem, &Caps::Activations(vec![5, 6, 7]), &effort, &mut |done, all| {
        calls += 1;
        assert!(done <= all && all == 3000);
        ControlFlow::Break(())
    });
    let front = front.unwrap();
    assert_eq!((calls, front.points.len(), front.is_stopped), (1, 3, true));
    assert!(front.to_text().contains("stopped early"));
}

#[test]
fn bad_caps_are_refused() {
    let problem = problem(Placement::bidirectional(4).unwrap(), 8, 25_000);
    let error = |caps: Caps| {
        memory_time_front(&problem, &caps, &NONE, &mut |_, _| ControlFlow::Continue(()))
            .unwrap_err()
            .to_string()
    };
    assert_eq!(error(Caps::Activations(vec![])), "front: the number of caps is 0, must be 1 to 256");
    let many = (1..=FRONT_POINTS_MAX + 1).collect();
    assert_eq!(error(Caps::Activations(many)), "front: the number of caps is 257, must be 1 to 256");
    assert_eq!(error(Caps::Activations(vec![0, 4])), "front: caps[0] is 0, must be at least 1");
    assert_eq!(error(Caps::Bytes(vec![9, 9])), "front: caps[1] is 9, must be more than 9, the one before");
    // Nothing fits into no memory at all.
    assert!(!error(Caps::Bytes(vec![0])).is_empty());
    let few = Problem {
        costs: Costs::new(vec![StageCosts::default(); 3], Link::default()).unwrap(),
        ..problem.clone()
    };
    let error =
        memory_time_front(&few, &Caps::AllBytes, &NONE, &mut |_, _| ControlFlow::Continue(())).unwrap_err();
    assert_eq!(error.to_string(), "costs: the number of stages is 3, must be 1 or 4, the schedule's stages");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn more_memory_is_never_slower(
        ranks in 1usize..4,
        shape in 0usize..4,
        n in 1usize..10,
        overlap in 20_000u64..=30_000,
        bytes: bool,
    ) {
        let placement = match shape {
            0 => Placement::linear(ranks),
            1 => Placement::v(ranks),
            2 => Placement::interleaved(ranks, 2),
            _ => Placement::bidirectional(ranks),
        };
        let problem = problem(placement.unwrap(), n, overlap);
        let caps = if bytes { Caps::AllBytes } else { Caps::AllActivations };
        let front = front(&problem, &caps);
        prop_assert!(!front.points.is_empty());
        for points in front.points.windows(2) {
            prop_assert!(points[0].cap < points[1].cap);
            prop_assert!(points[0].makespan_ns >= points[1].makespan_ns);
            prop_assert!(points[0].lower_bound_ns >= points[1].lower_bound_ns);
        }
        for point in &front.points {
            prop_assert_eq!(&point.schedule.check().unwrap().peak_live, &point.peak_live);
            let simulation = simulate(&point.schedule, &problem.costs).unwrap();
            prop_assert_eq!(point.makespan_ns, simulation.timeline.makespan_ns());
            prop_assert_eq!(&point.peak_memory_bytes, &simulation.peak_memory_bytes);
            let peak = if bytes {
                simulation.peak_memory_bytes.into_iter().max().unwrap()
            } else {
                point.peak_live.iter().copied().max().unwrap() as u64
            };
            prop_assert_eq!(peak, point.peak);
            prop_assert!(peak <= point.cap && point.lower_bound_ns <= point.makespan_ns);
        }
        // Where memory was not given, the last point is the first with its makespan.
        let last = front.points.last().unwrap();
        prop_assert!(front.points.iter().rev().skip(1).all(|point| point.makespan_ns > last.makespan_ns));
        roxmltree::Document::parse(&front.to_svg()).unwrap();
    }
}
