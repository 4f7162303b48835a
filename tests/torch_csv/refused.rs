//! What is refused, each with its reason.

use dualpipe::ids::{Direction, Microbatch, Rank, Stage};
use dualpipe::op::{Op, Pass};
use dualpipe::placement::Placement;
use dualpipe::schedule::torch_csv::{read_csv, write_csv, Format, TorchVersion};
use dualpipe::schedule::{chimera, dualpipe, one_f_one_b, Schedule, Work};
use dualpipe::ErrorKind;
use expect_test::{expect, Expect};
use Format::{ComputeComms, ComputeOnly};

use super::{small_v, torch};

/// Each text of `table`, behind its version and format, is refused with the error below it.
fn assert_refused(table: &Expect) {
    let mut drawn = String::new();
    for head in table.data.lines().map(str::trim).filter(|line| line.starts_with("2.")) {
        let mut words = head.splitn(3, ' ');
        let version = TorchVersion::parse(words.next().unwrap()).unwrap();
        let format = Format::parse(words.next().unwrap()).unwrap();
        let text = words.next().unwrap().replace("\\n", "\n").replace("\\r", "\r");
        let text = text.replace("\\0", "\0").replace("BOM", "\u{feff}").replace("NOTHING", "");
        let error = read_csv(&text, version, format).expect_err(head);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{head}");
        drawn += &format!("{head}\n    {error}\n");
    }
    table.assert_eq(&drawn);
}

#[test]
fn a_cell_is_read_to_its_end_and_by_its_version() {
    assert_refused(&expect![[r#"
        2.15 compute_only 0F0x
            torch csv: row 1, column 1 (rank 0) is "0F0x", must end after 0F0: torch takes that and leaves the rest
        2.15 compute_only 0F0 0B0
            torch csv: row 1, column 1 (rank 0) is "0F0 0B0", must end after 0F0: torch takes that and leaves the rest
        2.15 compute_only 0F0,0B
            torch csv: row 1, column 2 (rank 0) is "0B", must end with a micro-batch, such as 0B0
        2.15 compute_only 0F0,B0
            torch csv: row 1, column 2 (rank 0) is "B0", must begin with a stage, as in 2F0, 2I0, 2W0, 2B0, (0F3;3B1)OVERLAP_F_B
        2.15 compute_only 0F0,0B-1
            torch csv: row 1, column 2 (rank 0) is "0B-1", must end after 0B: torch takes that and leaves the rest
        2.15 compute_only 0f0,0B0
            torch csv: row 1, column 1 (rank 0) is "0f0", must be an action of torch's, such as 2F0, 2I0, 2W0, 2B0, (0F3;3B1)OVERLAP_F_B
        2.15 compute_only 0F0,,0X0\n
            torch csv: row 1, column 3 (rank 0) is "0X0", must be an action of torch's, such as 2F0, 2I0, 2W0, 2B0, (0F3;3B1)OVERLAP_F_B
        2.15 compute_only 0F0,\0
            torch csv: row 1, column 2 (rank 0) is "\0", must begin with a stage, as in 2F0, 2I0, 2W0, 2B0, (0F3;3B1)OVERLAP_F_B
        2.15 compute_only BOM0F0,0B0
            torch csv: row 1, column 1 (rank 0) is "\u{feff}0F0", must begin with a stage, as in 2F0, 2I0, 2W0, 2B0, (0F3;3B1)OVERLAP_F_B
        2.15 compute_only 0F0,0B0\r1F0,1B0
            torch csv: row 1, column 2 (rank 0) is "0B0\r1F0", must end after 0B0: torch takes that and leaves the rest
        2.15 compute_only 0F0,8192B0
            torch csv: row 1, column 2 (rank 0) is "8192B0", must have a stage of 0 to 8191
        2.15 compute_only 0F0,99999999999999999999B0
            torch csv: row 1, column 2 (rank 0) is "99999999999999999999B0", must have a stage of 0 to 8191
        2.15 compute_only 0F0,0B1048576
            torch csv: row 1, column 2 (rank 0) is "0B1048576", must have a micro-batch of 0 to 1048575
        2.15 compute_only 0F0,(0F1;0B0)OVERLAP
            torch csv: row 1, column 2 (rank 0) is "(0F1;0B0)OVERLAP", must be like (0F3;3B1)OVERLAP_F_B: a forward, then a full backward
        2.15 compute_only 0F0,(0F1;0B0)OVERLAP_F_B1
            torch csv: row 1, column 2 (rank 0) is "(0F1;0B0)OVERLAP_F_B1", must be like (0F3;3B1)OVERLAP_F_B: a forward, then a full backward
        2.15 compute_only 0F0,(0F1)OVERLAP_F_B
            torch csv: row 1, column 2 (rank 0) is "(0F1)OVERLAP_F_B", must be like (0F3;3B1)OVERLAP_F_B: a forward, then a full backward
        2.15 compute_only 0F0,(0B0;0F1)OVERLAP_F_B
            torch csv: row 1, column 2 (rank 0) is "(0B0;0F1)OVERLAP_F_B", must be like (0F3;3B1)OVERLAP_F_B: a forward, then a full backward
        2.15 compute_only 0F0,(0F1;0I0)OVERLAP_F_B
            torch csv: row 1, column 2 (rank 0) is "(0F1;0I0)OVERLAP_F_B", must be like (0F3;3B1)OVERLAP_F_B: a forward, then a full backward
        2.15 compute_only 0F0,(0F1;0B0;0W0)OVERLAP_F_B
            torch csv: row 1, column 2 (rank 0) is "(0F1;0B0;0W0)OVERLAP_F_B", must be like (0F3;3B1)OVERLAP_F_B: a forward, then a full backward
        2.15 compute_only 0F0,((0F1;0B0)OVERLAP_F_B;0B1)OVERLAP_F_B
            torch csv: row 1, column 2 (rank 0) is "((0F1;0B0)OVERLAP_F_B;0B1)OVERLAP_F_B", must be like (0F3;3B1)OVERLAP_F_B: a forward, then a full backward
        2.8 compute_only 0F0,(0F1;0B0)OVERLAP_F_B
            torch csv: row 1, column 2 (rank 0) is "(0F1;0B0)OVERLAP_F_B", must be two cells, the forward, then the backward: torch 2.8 has no OVERLAP_F_B in format compute_only; since 2.9
        2.9 compute_comms 0F0,(0F1;0B0)OVERLAP_F_B
            torch csv: row 1, column 2 (rank 0) is "(0F1;0B0)OVERLAP_F_B", must be two cells, the forward, then the backward: torch 2.9 has no OVERLAP_F_B in format compute_comms; since 2.10
        2.14 compute_comms 0F0,0B0,0WAIT_SEND_F1
            torch csv: row 1, column 3 (rank 0) is "0WAIT_SEND_F1", must not be: torch 2.14 does not know WAIT_SEND_F and reads it as W; since 2.15
        2.14 compute_comms 0F0,0B0,0WAIT_REDUCE_GRAD
            torch csv: row 1, column 3 (rank 0) is "0WAIT_REDUCE_GRAD", must not be: torch 2.14 does not know WAIT_REDUCE_GRAD and reads it as W; since 2.15
        2.14 compute_only 0F0,0B0,0WAIT_SEND_F1
            torch csv: row 1, column 3 (rank 0) is "0WAIT_SEND_F1", must not be: torch 2.14 does not know WAIT_SEND_F and reads it as W; since 2.15
        2.9 compute_comms 0F0,0B0,0REDUCE_GRAD
            torch csv: row 1, column 3 (rank 0) is "0REDUCE_GRAD", must not be: torch 2.9 does not know REDUCE_GRAD; since 2.10
        2.15 compute_only 0F0,0B0,0SEND_F0
            torch csv: row 1, column 3 (rank 0) is "0SEND_F0", must not be in format compute_only, for which torch puts in the communication; it belongs in compute_comms
        2.15 compute_comms 0F0,,0B0
            torch csv: row 1, column 2 (rank 0) is "", must not be blank in format compute_comms
        2.15 compute_comms 0UNSHARD1,0F0
            torch csv: row 1, column 1 (rank 0) is "0UNSHARD1", must have no micro-batch: it is about the whole stage
        2.15 compute_comms 0F0,0SEND
            torch csv: row 1, column 2 (rank 0) is "0SEND", must be an action of torch's, such as 2F0, 2I0, 2W0, 2B0, (0F3;3B1)OVERLAP_F_B, 2SEND_F0, 2RECV_B0, 2UNSHARD, 2RESHARD, 2REDUCE_GRAD, 2WAIT_SEND_F0, 2WAIT_REDUCE_GRAD
    "#]]);
}

#[test]
fn rows_stages_and_numbers_must_make_a_pipeline() {
    assert_refused(&expect![[r#"
        2.15 compute_only NOTHING
            torch csv: the text is empty, must have a row for each rank
        2.15 compute_only \n
            torch csv: row 1 (rank 0) computes nothing, while torch has one or more stages on each rank
        2.15 compute_only 0F0,0B0\n\n
            torch csv: row 2 (rank 1) computes nothing, while torch has one or more stages on each rank
        2.15 compute_only 0F0,0B0\n , \n1F0,1B0
            torch csv: row 2 (rank 1) computes nothing, while torch has one or more stages on each rank
        2.15 compute_comms 0F0,0B0,0REDUCE_GRAD,0WAIT_REDUCE_GRAD\n1UNSHARD
            torch csv: row 2 (rank 1) computes nothing, while torch has one or more stages on each rank
        2.15 compute_only 0F0,0B0,1F0,1B0\n3F0,3B0
            torch csv: stage 2 is on no rank, while stages 0 to 3 must be there: there is a stage 3
        2.15 compute_only 0F0,1F0,1B0,0B0\n1F1,0F1,0B1,1B1
            torch csv: row 2, column 1 (rank 1) is "1F1", must be of another stage: stage 1 is on rank 0, and torch has each stage on one rank. A schedule of two directions, with each stage on two, cannot be a CSV; "dualpipe_v" is DualPipe folded onto half as many ranks
        2.15 compute_only 0F0,0F1
            torch csv: there are forwards only, which torch does not load; eval() of one for training does
        2.15 compute_only 7F1048575,0F0,1F0,2F0,3F0,4F0,5F0,6F0,7B0
            torch csv: num_microbatches is 1048576, must be at most 524288 for 8 stages
    "#]]);
    let rows = "0F0,0B0\n".repeat(4097);
    let error = read_csv(&rows, torch(15), ComputeOnly).unwrap_err();
    expect!["torch csv: the number of rows is 4097, must be at most 4096"].assert_eq(&error.to_string());
}

#[test]
fn communication_must_be_of_its_rank_and_complete_where_the_version_demands_it() {
    assert_refused(&expect![[r#"
        2.9 compute_comms 0F0,0SEND_F0,0RECV_B0,0B0\n0RECV_F0,1F0,1B0,1SEND_B0
            torch csv: row 2, column 1 (rank 1) is "0RECV_F0", must be about a stage of this rank: stage 0 is on rank 0; a receive names the stage that receives
        2.9 compute_comms 0F0,0B0,2RESHARD
            torch csv: row 1, column 3 (rank 0) is "2RESHARD", must be about a stage of this rank: no rank computes stage 2
        2.9 compute_comms 0F0,0B0,0SEND_F0
            torch csv: row 1, column 3 (rank 0) is "0SEND_F0", must not be: it would cross an end of the model
        2.9 compute_comms 0RECV_F0,0F0,0B0
            torch csv: row 1, column 1 (rank 0) is "0RECV_F0", must not be: it would cross an end of the model
        2.9 compute_comms 0F0,0SEND_F1,0B0\n1F0,1B0
            torch csv: row 1, column 2 (rank 0) is "0SEND_F1", must be about a micro-batch that is computed, which are 0 to 0
        2.9 compute_comms 0F0,0SEND_F0,1F0,1B0,0B0
            torch csv: row 1, column 2 (rank 0) is "0SEND_F0", must not be: both stages are on rank 0, where torch hands over without a message
        2.10 compute_comms 0F0,0B0
            torch csv: row 1 (rank 0) has no 0REDUCE_GRAD, without which torch 2.10 does not reduce its gradients
        2.10 compute_comms 0REDUCE_GRAD,0F0,0B0
            torch csv: row 1, column 1 (rank 0) is "0REDUCE_GRAD", must come after the stage's last weight gradient, 0B0 in column 3
        2.10 compute_comms 0F0,0I0,0REDUCE_GRAD,0W0
            torch csv: row 1, column 3 (rank 0) is "0REDUCE_GRAD", must come after the stage's last weight gradient, 0W0 in column 4
        2.10 compute_comms 0F0,0B0,0REDUCE_GRAD,0REDUCE_GRAD
            torch csv: row 1, column 4 (rank 0) is "0REDUCE_GRAD", must be there once: the row has reduced these gradients
        2.10 compute_comms 0F0,1F0,0REDUCE_GRAD,1B0,1REDUCE_GRAD
            torch csv: row 1, column 3 (rank 0) is "0REDUCE_GRAD", must come after a backward: the row has no weight gradient of the stage
        2.15 compute_comms 0F0,0B0,0REDUCE_GRAD
            torch csv: row 1, column 3 (rank 0) is "0REDUCE_GRAD", must have 0WAIT_REDUCE_GRAD after it in its row
        2.15 compute_comms 0F0,0B0,0WAIT_REDUCE_GRAD,0REDUCE_GRAD
            torch csv: row 1, column 3 (rank 0) is "0WAIT_REDUCE_GRAD", must come after 0REDUCE_GRAD and be there once
        2.15 compute_comms 0F0,1F0,1B0,1REDUCE_GRAD,0B0,0REDUCE_GRAD,0WAIT_REDUCE_GRAD,1WAIT_REDUCE_GRAD
            torch csv: row 1, column 6 (rank 0) is "0REDUCE_GRAD", must come after 1WAIT_REDUCE_GRAD
        2.15 compute_comms 0F0,0SEND_F0,0B0,0REDUCE_GRAD,0WAIT_REDUCE_GRAD\n1F0,1B0
            torch csv: row 1, column 2 (rank 0) is "0SEND_F0", must have 0WAIT_SEND_F0 after it in its row
        2.15 compute_comms 0F0,0WAIT_SEND_F0,0SEND_F0,0B0,0REDUCE_GRAD,0WAIT_REDUCE_GRAD\n1F0,1B0
            torch csv: row 1, column 2 (rank 0) is "0WAIT_SEND_F0", must come after 0SEND_F0
        2.15 compute_comms 0F0,0SEND_F0,0SEND_F0,0B0,0REDUCE_GRAD,0WAIT_REDUCE_GRAD\n1F0,1B0
            torch csv: row 1, column 3 (rank 0) is "0SEND_F0", must be there once: the row has sent it
        2.15 compute_comms 0F0,0SEND_F0,0WAIT_SEND_F0,0WAIT_SEND_F0,0B0,0REDUCE_GRAD,0WAIT_REDUCE_GRAD\n1F0,1B0
            torch csv: row 1, column 4 (rank 0) is "0WAIT_SEND_F0", must be there once: the row has waited for it
    "#]]);
}

fn pass(stage: u16, microbatch: u32) -> Pass {
    Pass { direction: Direction::Down, stage: Stage(stage), microbatch: Microbatch(microbatch) }
}

/// A schedule of one stage on rank 0.
fn of_one_stage(ranks: usize, microbatches: usize, order: Vec<Op>) -> Schedule {
    let placement = Placement::new(ranks, &[vec![Rank(0)]]).unwrap();
    let orders = (0..ranks).map(|rank| if rank == 0 { order.clone() } else { Vec::new() }).collect();
    Schedule::new("ours", placement, microbatches, Work::Training, orders).unwrap()
}

#[test]
fn what_torch_cannot_run_is_not_written() {
    let mut drawn = String::new();
    let mut refuse = |schedule: &Schedule, version, format| -> ErrorKind {
        let error = write_csv(schedule, version, format).unwrap_err();
        drawn += &format!("{error}\n");
        error.kind()
    };
    let v = small_v();
    let late = [Op::F(pass(0, 1)), Op::F(pass(0, 0)), Op::B(pass(0, 0)), Op::B(pass(0, 1))];
    let whole = vec![Op::F(pass(0, 0)), Op::B(pass(0, 0))];
    for (schedule, version, format) in [
        (&v, torch(5), ComputeOnly),
        (&v, torch(16), ComputeComms),
        (&dualpipe(4, 8, Work::Training).unwrap(), torch(15), ComputeOnly),
        (&chimera(2, 4, Work::Training).unwrap(), torch(15), ComputeComms),
        (&one_f_one_b(2, 4, Work::ForwardOnly).unwrap(), torch(15), ComputeOnly),
        (&of_one_stage(1, 2, late.to_vec()), torch(15), ComputeOnly),
        (&of_one_stage(2, 1, whole.clone()), torch(15), ComputeOnly),
    ] {
        assert_eq!(refuse(schedule, version, format), ErrorKind::InvalidArgument);
    }
    let half = of_one_stage(1, 1, whole[..1].to_vec());
    assert_eq!(refuse(&half, torch(15), ComputeOnly), ErrorKind::InvalidSchedule);
    expect![[r#"
        torch csv: torch_version is 2.5, must be at least 2.6
        torch csv: torch_version is 2.16, must be at most 2.15 for format "compute_comms", whose cells change from version to version; "compute_only" has no such limit
        torch csv: schedule is dualpipe, of two directions: each stage is on two ranks, while torch's pipelining has each stage on one rank; "dualpipe_v" is DualPipe folded onto half as many ranks
        torch csv: schedule is chimera, of two directions: each stage is on two ranks, while torch's pipelining has each stage on one rank; "dualpipe_v" is DualPipe folded onto half as many ranks
        torch csv: schedule is 1f1b, forward_only, which torch does not load; eval() of one for training does
        torch csv: schedule is ours, with the forwards of stage 0 out of order, 1 before 0; torch takes losses in order
        torch csv: schedule is ours, with no stage on rank 1, while torch has one or more on each rank
        ours: rank 0, position 1 (end): no B or I for micro-batch 0 of direction 0 at stage 0
    "#]].assert_eq(&drawn);
    // Compute has not changed since 2.9.
    let newer = TorchVersion { major: 3, minor: 0 };
    assert_eq!(write_csv(&v, newer, ComputeOnly).unwrap(), write_csv(&v, torch(9), ComputeOnly).unwrap());
}
