//! The pictures of the documentation are drawn by the library: `UPDATE_EXPECT=1 cargo test --test pictures` draws anew.

use dualpipe::cost::{Costs, Link, StageCosts};
use dualpipe::schedule::{dualpipe, dualpipe_v, Work};
use dualpipe::sim::simulate;
use expect_test::expect_file;

/// A forward and an input backward take a millisecond, a weight backward too, and a pair two and a half.
fn costs() -> Costs {
    let stage = StageCosts {
        forward_ns: 1_000_000,
        input_ns: 1_000_000,
        weight_ns: 1_000_000,
        overlapped_ns: 2_500_000,
        ..StageCosts::default()
    };
    Costs::new(vec![stage], Link::default()).unwrap()
}

#[test]
fn the_pictures_of_the_documentation_are_current() {
    let dualpipe = simulate(&dualpipe(8, 20, Work::Training).unwrap(), &costs()).unwrap();
    expect_file!["../docs/dualpipe-8x20.svg"].assert_eq(&dualpipe.timeline.to_svg());
    let folded = simulate(&dualpipe_v(4, 10, Work::Training).unwrap(), &costs()).unwrap();
    expect_file!["../docs/dualpipe_v-4x10.svg"].assert_eq(&folded.timeline.to_svg());
}
