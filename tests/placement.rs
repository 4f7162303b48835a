//! Who holds which stage, drawn: a line for each rank, its copies as direction/stage.

use dualpipe::error::Result;
use dualpipe::ids::{Direction, Rank, Stage};
use dualpipe::op::StageCopy;
use dualpipe::placement::Placement;
use expect_test::expect;

fn draw(placement: Result<Placement>) -> String {
    let placement = placement.unwrap();
    let line = |rank: usize| {
        let copies = placement.copies_on(Rank(rank as u32)).iter();
        let copies: Vec<String> = copies.map(|copy| format!("{}/{}", copy.direction, copy.stage)).collect();
        format!("{rank}| {}\n", copies.join(" "))
    };
    (0..placement.num_ranks()).map(line).collect()
}

#[test]
fn placements_by_eye() {
    expect![[r#"
        0| 0/0
        1| 0/1
        2| 0/2
    "#]]
    .assert_eq(&draw(Placement::linear(3)));
    expect![[r#"
        0| 0/0 0/5
        1| 0/1 0/4
        2| 0/2 0/3
    "#]]
    .assert_eq(&draw(Placement::v(3)));
    expect![[r#"
        0| 0/0 0/2 0/4
        1| 0/1 0/3 0/5
    "#]]
    .assert_eq(&draw(Placement::interleaved(2, 3)));
    expect![[r#"
        0| 0/0 1/3
        1| 0/1 1/2
        2| 0/2 1/1
        3| 0/3 1/0
    "#]]
    .assert_eq(&draw(Placement::bidirectional(4)));
}

#[test]
fn a_placement_finds_every_copy_where_it_put_it() {
    for num_ranks in 1..=16 {
        let placements = [
            Placement::linear(num_ranks),
            Placement::v(num_ranks),
            Placement::interleaved(num_ranks, 3),
            Placement::bidirectional(num_ranks),
        ];
        for placement in placements.map(Result::unwrap) {
            let mut found = 0;
            for rank in (0..num_ranks).map(|rank| Rank(rank as u32)) {
                for (i, &copy) in placement.copies_on(rank).iter().enumerate() {
                    assert_eq!(placement.rank_of(copy), Some(rank));
                    assert_eq!(placement.local_index(copy), Some(i));
                    let next = placement.next(copy).map(|next| placement.previous(next));
                    assert!(next.is_none_or(|back| back == Some(copy)));
                    found += 1;
                }
            }
            assert_eq!(found, placement.num_copies());
            let beyond = StageCopy { direction: Direction::Up, stage: Stage(placement.num_stages() as u16) };
            assert_eq!(placement.rank_of(beyond), None);
        }
    }
}

#[test]
fn sizes_out_of_range_are_refused() {
    let text = |placement: Result<Placement>| placement.map(|_| ()).map_err(|e| e.to_string());
    for (placement, want) in [
        (Placement::linear(0), Err("placement: num_ranks is 0, must be 1 to 4096")),
        (Placement::linear(4096), Ok(())),
        (Placement::bidirectional(4097), Err("placement: num_ranks is 4097, must be 1 to 4096")),
        (Placement::v(4096), Ok(())),
        (Placement::interleaved(2, 0), Err("placement: stages_per_rank is 0, must be 1 to 4096")),
        (Placement::interleaved(2, 4096), Ok(())),
        (Placement::interleaved(2, 4097), Err("placement: stages_per_rank is 4097, must be 1 to 4096")),
        (
            Placement::interleaved(usize::MAX, 1),
            Err("placement: num_ranks is 18446744073709551615, must be 1 to 4096"),
        ),
    ] {
        assert_eq!(text(placement), want.map_err(String::from));
    }
}
