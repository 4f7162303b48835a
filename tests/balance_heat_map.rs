//! Heat maps: well-formed, complete, the same each time; and what one looks like.

mod support {
    pub(crate) mod data;
}

use dualpipe::balance::heat_map::{heat_map_text, Panel};
use dualpipe::balance::{deepseek, gpu_loads, heat_map, Cluster, ExpertPlan, Options, Problem};
use expect_test::{expect, expect_file};
use roxmltree::{Document, Node};

/// Heavy at the left of even layers, a dead GPU, one without slots; two nodes.
fn small() -> (Cluster, Vec<f64>) {
    let cluster =
        Cluster::new(&[2, 2, 2, 0, 2, 2], &[0, 0, 0, 1, 1, 1], &[true, true, true, true, true, false]);
    let even = [4.0, 2.0, 1.0, 0.0, 1.0, 0.0];
    let odd = [2.0, 2.05, 1.95, 0.0, 2.0, 0.0];
    (cluster.unwrap(), [even, odd, even, odd].concat())
}

/// DeepSeek's plan, and the experts in order, for loads that fall like a power law and repeat every 7 layers.
fn plan(problem: &Problem) -> (ExpertPlan, Vec<u32>, Vec<f32>) {
    let load = |i: usize| (1000.0 / (1 + i * 7919 % problem.num_experts) as f32).sqrt();
    let layers =
        (0..problem.num_layers).flat_map(|layer| (0..problem.num_experts).map(move |i| i + layer % 7 * 31));
    let loads: Vec<f32> = layers.map(load).collect();
    let plan = deepseek(problem, &loads, Options::default()).unwrap();
    let in_order: Vec<u32> = (0..problem.num_slots).map(|slot| (slot % problem.num_experts) as u32).collect();
    (plan, in_order.repeat(problem.num_layers), loads)
}

fn of_class<'a>(document: &'a Document<'_>, name: &'a str) -> impl Iterator<Item = Node<'a, 'a>> {
    document.descendants().filter(move |node| node.has_tag_name(name))
}

/// Cells of each colour: `M<x> <y>h<len>v1h-<len>z`, again and again.
fn cells(document: &Document<'_>) -> Vec<(String, usize)> {
    let in_cells = |path: &Node<'_, '_>| path.parent().is_some_and(|g| g.has_attribute("shape-rendering"));
    let count = |path: Node<'_, '_>| {
        let runs = path.attribute("d").unwrap().split('h').skip(1).step_by(2);
        runs.map(|run| run.split('v').next().unwrap().parse::<usize>().unwrap()).sum()
    };
    let paths = of_class(document, "path").filter(in_cells);
    paths.map(|path| (path.attribute("fill").unwrap().to_owned(), count(path))).collect()
}

#[test]
fn a_small_one_looks_so() {
    let (cluster, loads) = small();
    let before = Panel { title: "before <&> \"after\"\u{1}", cluster: &cluster, loads: &loads };
    let after = Panel { title: "after", loads: &[1.0; 24], ..before };
    expect_file!["data/heat_map_small.svg"].assert_eq(&heat_map(&[before, after]).unwrap());
    expect![[r#"
        before <&> "after" 
        mean imbalance 1.513, worst 2.000 (layer 0)
            0 │█▄▂│x▂x│ 2.000
            1 │▄▄▄│x▄x│ 1.025
            2 │█▄▂│x▂x│ 2.000
            3 │▄▄▄│x▄x│ 1.025

        after
        mean imbalance 1.000, worst 1.000 (layer 0)
            0 │▄▄▄│x▄x│ 1.000
            1 │▄▄▄│x▄x│ 1.000
            2 │▄▄▄│x▄x│ 1.000
            3 │▄▄▄│x▄x│ 1.000

        load / mean: ▁ below 0.5  ▂ 0.5  ▃ 0.8  ▄ 0.95  ▅ 1.05  ▆ 1.2  ▇ 1.5  █ 2  x dead or without slots
    "#]]
    .assert_eq(&heat_map_text(&[before, after]).unwrap());
}

#[test]
fn every_cell_has_the_colour_of_its_load() {
    let (cluster, loads) = small();
    let svg = heat_map(&[Panel { title: "", cluster: &cluster, loads: &loads }]).unwrap();
    let document = Document::parse(&svg).unwrap();
    // Twice: 2, 1 (the background), 0.5 and 0.5 of the mean; and 1.025, 0.975 beside two that are the mean.
    let want = [("#082a54", 4), ("#d0e5f5", 2), ("#fde3bf", 2), ("#5a1d02", 2), ("#8f8f95", 8)];
    assert_eq!(cells(&document), want.map(|(colour, count)| (colour.to_owned(), count)));
    let hover: Vec<_> = of_class(&document, "title").filter_map(|title| title.text()).collect();
    assert_eq!(
        hover[..2],
        ["layer 0: imbalance 2.0000, heaviest GPU 0", "layer 1: imbalance 1.0250, heaviest GPU 1"]
    );
    assert!(svg.contains(">mean imbalance 1.513, worst 2.000 (layer 0)<"), "{svg}");
}

#[test]
fn many_cells_are_merged_and_it_is_said_so() {
    let cluster = Cluster::even(4096, 4096, 512).unwrap();
    // GPU 1000 of layer 77 has a little more than all others.
    let mut loads = vec![1.0; 256 * 4096];
    loads[77 * 4096 + 1000] = 1.3;
    let panel = Panel { title: "large", cluster: &cluster, loads: &loads };
    let svg = heat_map(&[panel, panel]).unwrap();
    let document = Document::parse(&svg).unwrap();
    assert_eq!(cells(&document), [("#d46612".to_owned(), 1), ("#d46612".to_owned(), 1)]);
    let path = of_class(&document, "path").find(|path| path.attribute("fill") == Some("#d46612")).unwrap();
    assert_eq!(path.attribute("d"), Some("M62 38h1v1h-1z"));
    assert!(svg.contains(" · a cell: the heaviest of 16 GPUs in 2 layers<"));
    assert!(svg.contains("<title>layers 76 to 77, worst 77: imbalance 1.2999, heaviest GPU 1000</title>"));
    assert_eq!(of_class(&document, "rect").filter(|rect| rect.has_children()).count(), 2 * 128);
}

#[test]
fn the_worst_that_can_be_drawn_is_bounded() {
    // No two neighbours alike.
    let cluster = Cluster::even(4096, 4096, 512).unwrap();
    let loads: Vec<f64> = (0..256 * 4096).map(|i| (i / 16 * 7919 % 13) as f64).collect();
    let panel = Panel { title: "large", cluster: &cluster, loads: &loads };
    let svg = heat_map(&[panel]).unwrap();
    assert!(svg.len() < 1 << 20, "{}", svg.len());
    assert_eq!(heat_map(&[panel]).unwrap(), svg);
    let text = heat_map_text(&[panel, panel]).unwrap();
    // 49 would fit, but have parts of several nodes.
    assert!(text.contains(" · a cell: the heaviest of 56 GPUs in 4 layers\n"), "{text}");
    for line in text.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
}

#[test]
fn sizes_of_all_kinds_are_well_formed() {
    for (num_layers, num_gpus, num_nodes) in
        [(1, 1, 1), (58, 32, 4), (3, 84, 7), (3, 85, 85), (128, 256, 32), (129, 257, 3), (4096, 2, 1)]
    {
        let cluster = Cluster::even(num_gpus, num_gpus, num_nodes).unwrap();
        let loads: Vec<f64> = (0..num_layers * num_gpus).map(|i| (i * 31 % 17) as f64).collect();
        let panel = Panel { title: "", cluster: &cluster, loads: &loads };
        for num_panels in [1, 2, 4, 5, 16] {
            let svg = heat_map(&vec![panel; num_panels]).unwrap();
            let document = Document::parse(&svg).unwrap();
            let number = |name| document.root_element().attribute(name).unwrap().parse::<f64>().unwrap();
            assert!(number("width") < 3000.0 && number("height") < 6000.0, "{num_layers} {num_gpus}");
        }
        let text = heat_map_text(&[panel]).unwrap();
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        assert!(text.lines().count() <= 70);
    }
}

#[test]
fn lines_between_nodes_leave_the_cells_visible() {
    // GPUs, nodes, lines within a row of the text, and in the SVG.
    for (num_gpus, num_nodes, in_text, in_svg) in [
        (8, 1, 0, 0),
        (8, 2, 1, 1),
        (8, 4, 3, 3),
        (8, 5, 4, 4),
        (8, 6, 0, 0),
        (8, 8, 0, 0),
        (80, 5, 4, 4),
        (80, 10, 0, 9), // would be wider than 100 columns
        (4096, 8, 7, 7),
        (4096, 512, 0, 0),
        (4095, 5, 4, 4), // of 819 GPUs: 63 in a column rather than 49, 21 rather than 16
        (4096, 4, 3, 3),
        (514, 2, 0, 0), // of 257, a prime: the line would be within a cell
    ] {
        let cluster = Cluster::even(num_gpus, num_gpus, num_nodes).unwrap();
        let panel = Panel { title: "", cluster: &cluster, loads: &vec![1.0; num_gpus] };
        let text = heat_map_text(&[panel]).unwrap();
        assert_eq!(text.matches('│').count(), in_text + 2, "{num_gpus} {num_nodes}");
        let svg = heat_map(&[panel]).unwrap();
        let document = Document::parse(&svg).unwrap();
        let lines = of_class(&document, "path").find(|path| path.attribute("fill") == Some("none")).unwrap();
        let lines = lines.attribute("d").unwrap().matches('M').count() - 1;
        assert_eq!(lines, in_svg, "{num_gpus} {num_nodes}");
    }
}

#[test]
fn zero_and_tiny_and_huge_loads_are_drawn() {
    let cluster = Cluster::even(2, 2, 1).unwrap();
    for (load, want) in [(0.0, 0), (f64::MIN_POSITIVE, 0), (5e-324, 0), (1e300, 0)] {
        let svg = heat_map(&[Panel { title: "", cluster: &cluster, loads: &[load; 8] }]).unwrap();
        assert_eq!(cells(&Document::parse(&svg).unwrap()).len(), want, "{load}");
        assert!(svg.contains("mean imbalance 1.000, worst 1.000 (layer 0)"), "{load}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{load}");
    }
}

#[test]
fn what_cannot_be_drawn_is_refused() {
    let cluster = Cluster::even(2, 2, 1).unwrap();
    let error = |loads: &[f64]| {
        let error = heat_map(&[Panel { title: "", cluster: &cluster, loads }]).unwrap_err();
        assert_eq!(heat_map_text(&[Panel { title: "", cluster: &cluster, loads }]).unwrap_err(), error);
        error.to_string()
    };
    for (error, want) in [
        (error(&[]), "panel 0's num_layers is 0, must be 1 to 4096"),
        (error(&[1.0; 3]), "the length of panel 0's loads is 3, must be a multiple of num_gpus = 2"),
        (error(&[1.0; 2 * 4097]), "panel 0's num_layers is 4097, must be 1 to 4096"),
        (error(&[1.0, 1.0, 1.0, f64::NAN]), "panel 0's loads[layer 1, GPU 1] is NaN, must be 0 to 1e300"),
        (error(&[1.0, -1.0]), "panel 0's loads[layer 0, GPU 1] is -1.0, must be 0 to 1e300"),
        (error(&[f64::INFINITY, 1.0]), "panel 0's loads[layer 0, GPU 0] is inf, must be 0 to 1e300"),
        (heat_map(&[]).unwrap_err().to_string(), "the number of panels is 0, must be 1 to 16"),
    ] {
        assert_eq!(error, format!("heat_map: {want}"));
    }
}

/// Real loads where they are present, others of the same shape where not.
#[test]
fn a_plan_is_calmer_than_the_experts_in_order() {
    let problem = Problem {
        num_layers: 58,
        num_experts: 256,
        num_slots: 288,
        num_groups: 1,
        num_nodes: 1,
        num_gpus: 32,
    };
    let (mut plan, in_order, mut loads) = plan(&problem);
    if let Some(text) = support::data::optional_data("expert_loads_gpqa_58x256.csv") {
        loads =
            text.lines().flat_map(|line| line.split(',').map(|load| load.parse::<f32>().unwrap())).collect();
        plan = deepseek(&problem, &loads, Options::default()).unwrap();
    }
    let cluster = Cluster::even(288, 32, 4).unwrap();
    let before = gpu_loads(&cluster, 256, &in_order, None, &loads).unwrap();
    let after = gpu_loads(&cluster, 256, plan.slot_to_expert(), None, &loads).unwrap();
    let coloured = |title, loads: &[f64]| {
        let svg = heat_map(&[Panel { title, cluster: &cluster, loads }]).unwrap();
        cells(&Document::parse(&svg).unwrap()).iter().map(|(_, count)| count).sum::<usize>()
    };
    let (before, after) = (coloured("before", &before), coloured("after", &after));
    assert!(before > 1500 && after < before / 5, "{before} {after} of {}", 58 * 32);
}
