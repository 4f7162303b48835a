//! PyTorch's schedule CSV: written, read back, drawn, and refused with a reason.

#[path = "torch_csv/refused.rs"]
mod refused;
mod support;

use std::collections::BTreeSet;

use dualpipe::ids::{Rank, Stage};
use dualpipe::op::{Action, Message, MessageKind, Op, Pass, Task};
use dualpipe::placement::Placement;
use dualpipe::schedule::torch_csv::{read_csv, write_csv, Format, TorchVersion};
use dualpipe::schedule::{dualpipe_v, interleaved_1f1b, zb_h1, zb_v, Schedule, Work};
use dualpipe::ErrorKind;
use expect_test::expect;
use proptest::prelude::{any, prop_assert_eq, prop_oneof, Just, Strategy};
use support::{family, seeds};
use Format::{ComputeComms, ComputeOnly};

fn torch(minor: u32) -> TorchVersion {
    TorchVersion { major: 2, minor }
}

/// Every version whose dialects are known.
fn versions() -> impl Iterator<Item = TorchVersion> {
    (TorchVersion::OLDEST.minor..=TorchVersion::NEWEST.minor).map(torch)
}

fn is_for_torch(schedule: &Schedule) -> bool {
    schedule.placement().num_directions() == 1 && schedule.work() == Work::Training
}

fn has_pairs(version: TorchVersion, format: Format) -> bool {
    version >= if format == ComputeComms { torch(10) } else { torch(9) }
}

/// The orders with each pair taken apart.
fn without_pairs(schedule: &Schedule) -> Vec<Vec<Op>> {
    let parts = |op: &Op| match *op {
        Op::FB(f, b) => vec![Op::F(f), Op::B(b)],
        op => vec![op],
    };
    schedule.orders().iter().map(|order| order.iter().flat_map(parts).collect()).collect()
}

#[test]
fn what_is_written_is_read_in_every_version_and_format() {
    let mut compared = BTreeSet::new();
    for (ranks, microbatches) in [(1, 1), (1, 4), (2, 3), (2, 8), (3, 6), (4, 4), (4, 12), (5, 15), (8, 24)] {
        for schedule in family(ranks, microbatches).into_iter().filter(is_for_torch) {
            for version in versions() {
                for format in Format::ALL {
                    let text = write_csv(&schedule, version, format).unwrap();
                    let csv = read_csv(&text, version, format).unwrap();
                    let what = format!("{}, torch {version}, {format}", schedule.title());
                    let read = csv.schedule();
                    assert_eq!(read.placement(), schedule.placement(), "{what}");
                    assert_eq!(read.num_microbatches(), schedule.num_microbatches(), "{what}");
                    match has_pairs(version, format) {
                        true => assert_eq!(read.orders(), schedule.orders(), "{what}"),
                        false => assert_eq!(read.orders(), without_pairs(&schedule), "{what}"),
                    }
                    assert_eq!(csv.actions().is_some(), format == ComputeComms, "{what}");
                    assert_eq!(write_csv(read, version, format).unwrap(), text, "{what}");
                    read.check().unwrap();
                    compared.insert(schedule.name().to_string());
                }
            }
        }
    }
    assert_eq!(compared.len(), 12, "{compared:?}");
}

/// What two ranks send one another arrives in the order in which it is taken, and every op finds what it needs.
#[test]
fn the_actions_of_compute_comms_run_under_exchanges_in_order() {
    for (ranks, microbatches) in [(2, 4), (3, 7), (4, 12)] {
        for schedule in family(ranks, microbatches).into_iter().filter(is_for_torch) {
            for version in versions() {
                let text = write_csv(&schedule, version, ComputeComms).unwrap();
                let csv = read_csv(&text, version, ComputeComms).unwrap();
                let actions = csv.actions().unwrap();
                let what = format!("{}, torch {version}\n{text}", schedule.title());
                let ran: Vec<Vec<Op>> = actions.iter().map(|row| ops_of(row)).collect();
                assert_eq!(ran, csv.schedule().orders(), "{what}");
                for (rank, row) in actions.iter().enumerate() {
                    check_messages(csv.schedule(), Rank(rank as u32), row);
                    for (peer, theirs) in actions[..rank].iter().enumerate() {
                        let there = exchanges(row, Rank(peer as u32));
                        let here = exchanges(theirs, Rank(rank as u32));
                        let mirrored: Vec<_> = here.into_iter().map(|(sends, m)| (!sends, m)).collect();
                        assert_eq!(there, mirrored, "ranks {rank} and {peer}, {what}");
                    }
                    let waits = row.iter().filter(|a| matches!(a, Action::WaitSend(_))).count();
                    let sends = row.iter().filter(|a| matches!(a, Action::Send { .. })).count();
                    assert_eq!(waits, if version >= torch(15) { sends } else { 0 }, "{what}");
                }
            }
        }
    }
}

fn ops_of(row: &[Action]) -> Vec<Op> {
    let op_of = |action: &Action| match action {
        Action::Run(Task::Op(op)) => Some(*op),
        _ => None,
    };
    row.iter().filter_map(op_of).collect()
}

/// The messages between a row and a peer: whether the row sends, and what.
fn exchanges(row: &[Action], peer: Rank) -> Vec<(bool, Message)> {
    let exchange = |action: &Action| match *action {
        Action::Send { message, to } if to == peer => Some((true, message)),
        Action::Receive { message, from } if from == peer => Some((false, message)),
        _ => None,
    };
    row.iter().filter_map(exchange).collect()
}

/// Each op has received what another rank makes for it; each send comes after the op that makes it.
fn check_messages(schedule: &Schedule, rank: Rank, row: &[Action]) {
    let placement = schedule.placement();
    let last = placement.num_stages() - 1;
    let at = |pass: Pass, stage: usize| Pass { stage: Stage(stage as u16), ..pass };
    let mut there: BTreeSet<Message> = BTreeSet::new();
    for action in row {
        match *action {
            Action::Receive { message, .. } => assert!(there.insert(message), "{message} is received twice"),
            Action::Send { message, .. } => assert!(there.contains(&message), "{message} is not there yet"),
            Action::WaitSend(message) => assert!(there.contains(&message)),
            Action::Run(Task::ReduceGrads(copy)) => panic!("{copy:?} has no twin"),
            Action::Run(Task::Op(op)) => {
                for (kind, pass) in
                    [(MessageKind::Activation, op.forward()), (MessageKind::Gradient, op.backward_input())]
                {
                    let Some(pass) = pass else { continue };
                    let stage = pass.stage.index();
                    let needed = match kind {
                        MessageKind::Activation => stage.checked_sub(1),
                        MessageKind::Gradient => (stage < last).then_some(stage + 1),
                    };
                    if let Some(needed) = needed {
                        let message = Message { kind, pass: at(pass, needed) };
                        assert!(there.contains(&message), "rank {rank}: {op} lacks the {message}");
                    }
                    there.insert(Message { kind, pass });
                }
            }
        }
    }
}

fn small_v() -> Schedule {
    dualpipe_v(2, 3, Work::Training).unwrap()
}

#[test]
fn compute_only_is_the_schedule_cell_by_cell() {
    expect![[r#"
        0F0,0F1,0F2,3F0,3I0,3W0,3F1,3B1,(3F2;0B0)OVERLAP_F_B,3B2,0I1,0W1,0I2,0W2
        1F0,2F0,1F1,2F1,1F2,2B0,(2F2;1B0)OVERLAP_F_B,2B1,1B1,2I2,1I2,2W2,1W2
    "#]]
    .assert_eq(&write_csv(&small_v(), torch(15), ComputeOnly).unwrap());
    expect![[r#"
        0F0,0F1,0F2,3F0,3I0,3W0,3F1,3B1,3F2,0B0,3B2,0I1,0W1,0I2,0W2
        1F0,2F0,1F1,2F1,1F2,2B0,2F2,1B0,2B1,1B1,2I2,1I2,2W2,1W2
    "#]]
    .assert_eq(&write_csv(&small_v(), torch(8), ComputeOnly).unwrap());
}

#[test]
fn compute_comms_is_as_torch_lowers_it() {
    let drawn = |minor| write_csv(&small_v(), torch(minor), ComputeComms).unwrap().replace(',', " ");
    expect![[r#"
        0UNSHARD 3UNSHARD 0F0 0SEND_F0 0F1 0SEND_F1 3RECV_F0 0F2 0SEND_F2 3F0 3RECV_F1 3I0 3SEND_B0 3W0 3F1 3RECV_F2 0RECV_B0 3B1 3SEND_B1 (3F2;0B0)OVERLAP_F_B 0WAIT_SEND_F0 0RECV_B1 3B2 3SEND_B2 3REDUCE_GRAD 0RECV_B2 3WAIT_REDUCE_GRAD 3RESHARD 0I1 0WAIT_SEND_F1 0W1 0I2 0WAIT_SEND_F2 0W2 0REDUCE_GRAD 0WAIT_REDUCE_GRAD 0RESHARD 3WAIT_SEND_B0 3WAIT_SEND_B1 3WAIT_SEND_B2
        1UNSHARD 2UNSHARD 1RECV_F0 1F0 1RECV_F1 2F0 2SEND_F0 1RECV_F2 1F1 2F1 2SEND_F1 2RECV_B0 1F2 2B0 2WAIT_SEND_F0 (2F2;1B0)OVERLAP_F_B 2SEND_F2 1SEND_B0 2RECV_B1 2B1 2WAIT_SEND_F1 1B1 1SEND_B1 2RECV_B2 2I2 2WAIT_SEND_F2 1I2 1SEND_B2 2W2 2REDUCE_GRAD 2WAIT_REDUCE_GRAD 2RESHARD 1W2 1REDUCE_GRAD 1WAIT_REDUCE_GRAD 1RESHARD 1WAIT_SEND_B0 1WAIT_SEND_B1 1WAIT_SEND_B2
    "#]].assert_eq(&drawn(15));
    expect![[r#"
        0UNSHARD 3UNSHARD 0F0 0SEND_F0 0F1 0SEND_F1 3RECV_F0 0F2 0SEND_F2 3F0 3RECV_F1 3I0 3SEND_B0 3W0 3F1 3RECV_F2 0RECV_B0 3B1 3SEND_B1 (3F2;0B0)OVERLAP_F_B 0RECV_B1 3B2 3SEND_B2 3REDUCE_GRAD 0RECV_B2 3RESHARD 0I1 0W1 0I2 0W2 0REDUCE_GRAD 0RESHARD
        1UNSHARD 2UNSHARD 1RECV_F0 1F0 1RECV_F1 2F0 2SEND_F0 1RECV_F2 1F1 2F1 2SEND_F1 2RECV_B0 1F2 2B0 (2F2;1B0)OVERLAP_F_B 2SEND_F2 1SEND_B0 2RECV_B1 2B1 1B1 1SEND_B1 2RECV_B2 2I2 1I2 1SEND_B2 2W2 2REDUCE_GRAD 2RESHARD 1W2 1REDUCE_GRAD 1RESHARD
    "#]].assert_eq(&drawn(10));
    expect![[r#"
        0UNSHARD 3UNSHARD 0F0 0SEND_F0 0F1 0SEND_F1 3RECV_F0 0F2 0SEND_F2 3F0 3RECV_F1 3I0 3SEND_B0 3W0 3F1 3RECV_F2 3B1 3SEND_B1 0RECV_B0 3F2 0B0 0RECV_B1 3B2 3SEND_B2 3RESHARD 0RECV_B2 0I1 0W1 0I2 0W2
        1UNSHARD 2UNSHARD 1RECV_F0 1F0 1RECV_F1 2F0 2SEND_F0 1RECV_F2 1F1 2F1 2SEND_F1 2RECV_B0 1F2 2B0 2F2 2SEND_F2 2RECV_B1 1B0 1SEND_B0 2B1 1B1 1SEND_B1 2RECV_B2 2I2 1I2 1SEND_B2 2W2 2RESHARD 1W2
    "#]].assert_eq(&drawn(9));
}

#[test]
fn actions_are_drawn_in_words() {
    let text = "0UNSHARD,0F0,0SEND_F0,0RECV_B0,0B0,0REDUCE_GRAD,0WAIT_REDUCE_GRAD,0RESHARD,0WAIT_SEND_F0\n\
                1RECV_F0,1F0,1B0,1SEND_B0,1REDUCE_GRAD,1WAIT_REDUCE_GRAD,1WAIT_SEND_B0\n";
    let csv = read_csv(text, torch(15), ComputeComms).unwrap();
    let rows = csv.actions().unwrap().iter().map(|row| row.iter().map(Action::to_string).collect::<Vec<_>>());
    let drawn = rows.map(|row| row.join("\n") + "\n\n").collect::<String>();
    expect![[r#"
        0F0
        SEND activation of micro-batch 0 from stage 0 to 1 in direction 0 to rank 1
        RECEIVE gradient of micro-batch 0 from stage 1 to 0 in direction 0 from rank 1
        0B0
        WAIT_SEND activation of micro-batch 0 from stage 0 to 1 in direction 0

        RECEIVE activation of micro-batch 0 from stage 0 to 1 in direction 0 from rank 0
        1F0
        1B0
        SEND gradient of micro-batch 0 from stage 1 to 0 in direction 0 to rank 0
        WAIT_SEND gradient of micro-batch 0 from stage 1 to 0 in direction 0

    "#]]
    .assert_eq(&drawn);
}

#[test]
fn any_placement_is_read() {
    let csv = read_csv("2F0,0F0,2B0,0B0\n1F0,1I0,1W0\n", torch(6), ComputeOnly).unwrap();
    let placement = Placement::new(2, &[vec![Rank(0), Rank(1), Rank(0)]]).unwrap();
    assert_eq!(csv.schedule().placement(), &placement);
    assert_eq!(csv.schedule().name(), "torch csv");
    assert_eq!(csv.schedule().num_microbatches(), 1);
    // That stage 2 comes too early is for the check to say.
    let error = csv.into_schedule().check().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidSchedule);
}

#[test]
fn line_ends_blanks_and_quotes_do_not_matter() {
    let plain = read_csv("0F0,0B0\n1F0,1B0\n", torch(9), ComputeOnly).unwrap();
    for text in [
        "0F0,0B0\n1F0,1B0",
        "0F0,0B0\r\n1F0,1B0\r\n",
        " 0F0 ,\t0B0\n1F0,1B0",
        ",0F0,,0B0,\n , ,1F0,1B0",
        "\"0F0\",\"\",\"0B0\"\n1F0,1B0",
        "00F0,0B000\n1F0,1B0",
    ] {
        assert_eq!(read_csv(text, torch(9), ComputeOnly).unwrap(), plain, "{text:?}");
    }
    let pairs = ["(0F1;0B0)OVERLAP_F_B", "( 0F1 ; 0B0 )OVERLAP_F_B"];
    let read = pairs.map(|pair| read_csv(&format!("0F0,{pair},0B1"), torch(9), ComputeOnly).unwrap());
    assert_eq!(read[0], read[1]);
    assert!(matches!(read[0].schedule().order(Rank(0))[1], Op::FB(..)));
}

#[test]
fn versions_and_formats_are_read_as_torch_writes_them() {
    for (text, major, minor) in
        [("2.6", 2, 6), ("2.10.0+cpu", 2, 10), ("2.15.0a0+git12", 2, 15), ("3.0.1", 3, 0)]
    {
        assert_eq!(TorchVersion::parse(text).unwrap(), TorchVersion { major, minor });
    }
    for text in ["", "2", "2.", ".6", "two", "2.x", "-2.6", "+2.6", "2.6rc1", " 2.6", "2.99999999999"] {
        let error = TorchVersion::parse(text).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains("torch_version is \""), "{error}");
    }
    for format in Format::ALL {
        assert_eq!(Format::parse(format.name()).unwrap(), format);
    }
    let error = Format::parse("comms").unwrap_err();
    expect![[r#"torch csv: format is "comms", must be "compute_only" or "compute_comms""#]]
        .assert_eq(&error.to_string());
    assert_eq!(torch(10).to_string(), "2.10");
}

/// Any change of a cell is either refused or changes what is read: nothing is passed over.
#[test]
fn no_changed_cell_is_passed_over() {
    let schedules = [
        small_v(),
        zb_h1(3, 4, Work::Training).unwrap(),
        zb_v(2, 4, Work::Training).unwrap(),
        interleaved_1f1b(2, 2, 4, Work::Training).unwrap(),
    ];
    let (seeds, _) = seeds(2000);
    for seed in seeds {
        let mut random = fastrand::Rng::with_seed(seed);
        let schedule = random.choice(&schedules).unwrap();
        let version = torch(random.u32(6..=15));
        let format = *random.choice(&Format::ALL).unwrap();
        let text = write_csv(schedule, version, format).unwrap();
        let before = read_csv(&text, version, format).unwrap();
        let mut changed = text.clone().into_bytes();
        let at = random.usize(0..changed.len());
        changed[at] = *random.choice(b"0123456789FBIWSENDRCV_();,xU \n").unwrap();
        let changed = String::from_utf8(changed).unwrap();
        if changed != text && !only_about_parameters(&text, &changed) {
            if let Ok(after) = read_csv(&changed, version, format) {
                assert_ne!(after, before, "seed {seed}, byte {at}, {version} {format}\n{changed}");
            }
        }
    }
}

/// Whether the texts are the same without UNSHARD and RESHARD, and without blanks, which mean nothing here.
fn only_about_parameters(one: &str, other: &str) -> bool {
    let rest = |text: &str| -> Vec<String> {
        let cells = text.split([',', '\n']).map(|cell| cell.trim().to_string());
        cells.filter(|cell| !cell.is_empty() && !cell.ends_with("SHARD")).collect()
    };
    rest(one) == rest(other)
}

fn texts() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        any::<u16>().prop_map(|number| number.to_string()),
        any::<u64>().prop_map(|number| number.to_string()),
        Just("0F0,0B0".to_string()),
        Just("(0F1;0B0)OVERLAP_F_B".to_string()),
        proptest::sample::select(vec![
            "F",
            "B",
            "I",
            "W",
            "SEND_F",
            "RECV_F",
            "SEND_B",
            "RECV_B",
            "WAIT_SEND_F",
            "UNSHARD",
            "RESHARD",
            "REDUCE_GRAD",
            "WAIT_REDUCE_GRAD",
            ",",
            ",",
            "\n",
            "\r\n",
            "(",
            ")",
            ";",
            "\"",
            " ",
            "\0",
            "é",
        ])
        .prop_map(String::from),
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), minor in 6u32..=15) {
        let text = String::from_utf8_lossy(&bytes);
        for format in Format::ALL {
            read_and_write_back(&text, torch(minor), format)?;
        }
        let _ = TorchVersion::parse(&text);
        let _ = Format::parse(&text);
    }

    #[test]
    fn no_text_of_its_own_words_makes_it_panic(text in texts(), minor in 6u32..=15) {
        for format in Format::ALL {
            read_and_write_back(&text, torch(minor), format)?;
        }
    }
}

fn read_and_write_back(
    text: &str,
    version: TorchVersion,
    format: Format,
) -> Result<(), proptest::test_runner::TestCaseError> {
    match read_csv(text, version, format) {
        Ok(csv) => {
            if let Ok(written) = write_csv(csv.schedule(), version, format) {
                let again = read_csv(&written, version, format).unwrap();
                prop_assert_eq!(again.schedule(), csv.schedule());
            }
        }
        Err(error) => {
            prop_assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(error.to_string().len() < 700, "{}", error);
        }
    }
    Ok(())
}
