//! Timelines as text, SVG and Chrome trace.

mod any;
mod svg;
mod text;
mod trace;
#[path = "../support/unit_costs.rs"]
mod unit_costs;

use dualpipe::ids::{Direction, Microbatch, Stage};
use dualpipe::op::Pass;
use dualpipe::placement::Placement;
use dualpipe::timeline::{Source, Timeline};
use roxmltree::{Document, Node};

fn pass(direction: Direction, stage: u16, microbatch: u32) -> Pass {
    Pass { direction, stage: Stage(stage), microbatch: Microbatch(microbatch) }
}

fn empty(placement: Placement) -> Timeline {
    Timeline {
        title: "by hand".to_owned(),
        source: Source::Recorded,
        origin_ns: 0,
        placement,
        spans: Vec::new(),
        messages: Vec::new(),
    }
}

fn tasks<'a>(document: &'a Document) -> Vec<Node<'a, 'a>> {
    let is_task = |n: &Node| n.attribute("class").is_some_and(|class| class.starts_with("task"));
    document.descendants().filter(is_task).collect()
}

fn children<'a>(node: &Node<'a, 'a>, tag: &'static str) -> impl Iterator<Item = Node<'a, 'a>> {
    node.children().filter(move |n| n.has_tag_name(tag))
}

fn number(node: Node, attribute: &str) -> f64 {
    node.attribute(attribute).unwrap_or("0").parse().unwrap()
}
