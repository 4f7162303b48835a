"""``Schedule.verify``, ``verify_schedule_csv`` and ``python -m dualpipe check``: what is proved, what is found."""

import re

import dualpipe
import numpy as np
import pytest
from dualpipe import Costs, InvalidArgument, Schedule
from dualpipe.torch.schedule_csv import schedule_csv, verify_schedule_csv
from dualpipe.verification import FINDING_KINDS, TRANSPORTS, Verification

SWAPPED = "0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1\n1RECV_F1,1RECV_F0,1F0,1F1,1B0,1SEND_B0,1B1,1SEND_B1\n"
"""Rank 1 takes the two activations for one another."""
CROSSED = "0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1\n1RECV_F0,1F0,1B0,1SEND_B0,1RECV_F1,1F1,1B1,1SEND_B1\n"
"""Rank 0 sends an activation while rank 1 sends a gradient, each before it receives."""


def actions_of(schedule):
    return [schedule.program(rank).actions() for rank in range(schedule.ranks)]


@pytest.mark.parametrize(
    ("kind", "ranks", "microbatches"),
    [("dualpipe", 4, 8), ("dualpipe_v", 2, 4), ("1f1b", 3, 5), ("chimera", 4, 6), ("zb_v", 3, 4)],
)
@pytest.mark.parametrize("forward_only", [False, True])
def test_a_published_schedule_is_valid_with_its_programs_actions_and_without(kind, ranks, microbatches, forward_only):
    schedule = Schedule(kind, ranks, microbatches, forward_only)
    costs = Costs(f=1, i=1, w=1, activation_bytes=10, parameter_bytes=1000)
    tried = schedule.verify(costs=costs)
    given = schedule.verify(actions=actions_of(schedule), costs=costs)
    for verification, places in ((tried, {"lowered", "before_use", "at_start"}), (given, {"given"})):
        assert isinstance(verification, dualpipe.Verification)
        assert verification.transports == list(TRANSPORTS)
        assert {"asynchronous", "grouped", "asynchronous_tagged", "grouped_tagged"} <= set(verification.holds_for)
        assert verification.peak_live.tolist() == schedule.check().tolist()
        assert verification.peak_bytes.tolist() == schedule.simulate(costs).peak_memory.tolist()
        assert {trial.receives for trial in verification.trials} == places
        held = {trial.transport for trial in verification.trials if trial.fault is None}
        assert held == set(verification.holds_for)
    assert tried and tried.valid and tried.findings == [] and tried.omitted == 0
    assert str(tried) == f"valid under {', '.join(TRANSPORTS)}\n" and "valid under" in repr(tried)
    # Sends that wait one by one want receives that are posted before.
    assert {finding.kind for finding in given.findings} <= {"deadlock"}
    assert schedule.verify().peak_bytes is None


def test_transports_may_be_chosen():
    schedule = Schedule("gpipe", 2, 2)
    assert schedule.verify(transports="grouped").transports == ["grouped"]
    assert schedule.verify(transports=["rendezvous_tagged", "asynchronous"]).holds_for == [
        "asynchronous",
        "rendezvous_tagged",
    ]
    for wrong, want in (("mpi", "transports has 'mpi', must be of 'asynchronous', "), ([], "transports is empty")):
        with pytest.raises(InvalidArgument, match=want):
            schedule.verify(transports=wrong)


def test_a_fault_of_the_schedule_has_a_smallest_counterexample():
    lines = str(Schedule("1f1b", 3, 6)).splitlines()
    broken = Schedule.from_text("\n".join([lines[0], lines[1].replace(" 1B4", ""), lines[2]]), "broken")
    verification = broken.verify()
    assert not verification and verification.trials == [] and verification.holds_for == []
    finding = verification.findings[0]
    assert (finding.kind, finding.ranks, finding.receives) == ("missing_op", [1], None)
    assert (0, 1, 4) in finding.passes and finding.transports == list(TRANSPORTS)
    smaller = finding.counterexample
    assert smaller.is_smallest and smaller.actions is None and smaller.schedule.microbatches == 1
    assert smaller.text.startswith("The same with micro-batches 4 of direction 0, numbered from 0:\n0| 0F0 0B0\n")
    assert smaller.schedule.verify().findings[0].kind == "missing_op"
    assert finding.text in str(verification) and smaller.text in str(verification)
    assert "missing_op" in repr(verification)
    assert broken.verify(counterexamples=False).findings[0].counterexample is None


def test_actions_are_changed_and_each_change_is_found():
    schedule = Schedule("dualpipe", 2, 4)
    good = actions_of(schedule)
    copies = [schedule.copies(rank) for rank in range(2)]

    def kinds(change):
        changed = [list(order) for order in good]
        change(changed)
        return {finding.kind for finding in schedule.verify(actions=changed, transports="asynchronous").findings}

    def first(order, kind):
        return next(i for i, action in enumerate(order) if action[0] == kind)

    def of_kind(order, name):
        return next(i for i, action in enumerate(order) if action[0] == "RUN" and action[1][0] == name)

    assert kinds(lambda orders: None) == set()
    assert "missing_message" in kinds(lambda orders: orders[0].pop(first(orders[0], "SEND")))
    assert "doubled_message" in kinds(lambda orders: orders[1].insert(0, orders[1][first(orders[1], "RECEIVE")]))
    assert "wait_without_send" in kinds(lambda orders: orders[0].insert(0, orders[0][first(orders[0], "WAIT_SEND")]))
    assert "missing_reduction" in kinds(lambda orders: orders[0].pop(of_kind(orders[0], "REDUCE_GRADS")))
    assert "premature_reduction" in kinds(
        lambda orders: orders[0].insert(0, orders[0].pop(of_kind(orders[0], "REDUCE_GRADS")))
    )
    assert "task_order" in kinds(lambda orders: orders[0].pop(of_kind(orders[0], "F")))
    named = kinds(lambda orders: orders[0].append(("RUN", ("REDUCE_GRADS", copies[0][0]))))
    assert "doubled_reduction" in named
    message = good[0][first(good[0], "SEND")][1]
    assert "foreign_message" in kinds(lambda orders: orders[0].append(("SEND", message._replace(microbatch=9), 1)))


def test_a_cap_is_kept_or_exceeded():
    schedule = Schedule("1f1b", 4, 8)
    assert schedule.verify(cap=4).valid and schedule.verify(cap=[4, 3, 2, 1]).valid
    over = schedule.verify(cap=[4, 3, 1, 1])
    assert [(finding.kind, finding.ranks) for finding in over.findings] == [("exceeds_cap", [2])]
    costs = Costs(f=1, i=1, w=1, activation_bytes=10, parameter_bytes=100)
    assert schedule.verify(costs=costs, cap_bytes=140).valid
    assert schedule.verify(costs=costs, cap_bytes=np.array([140, 130, 120, 109])).findings[0].ranks == [3]
    for wrong, want in (
        ({"cap": [1, 2]}, "number of entries is 2, must be 1 or 4"),
        ({"cap": 0}, r"activations\[0\] is 0, must be 1"),
        ({"cap": []}, "cap is empty"),
        ({"cap": -1}, "cap has -1"),
        ({"cap_bytes": 100}, "costs is none, must be there"),
        ({"cap_bytes": 100, "cap": 1, "costs": costs}, "must be NULL with cap"),
    ):
        with pytest.raises(InvalidArgument, match=want):
            schedule.verify(**wrong)
    with pytest.raises(TypeError, match="cap has 1.5"):
        schedule.verify(cap=1.5)
    with pytest.raises(TypeError, match="must be dualpipe.Costs"):
        schedule.verify(costs=3)


def test_what_is_no_action_is_refused_with_rank_and_position():
    schedule = Schedule("gpipe", 2, 2)
    good = actions_of(schedule)
    message = next(action[1] for action in good[0] if action[0] == "SEND")
    for wrong, want in [
        (("SENT", message, 1), "must begin with one of 'RUN', 'SEND', 'RECEIVE', 'WAIT_SEND'"),
        (7, "must begin with one of"),
        (("RUN",), r'must be \("RUN", op\)'),
        (("RUN", ("X", 0, 0)), "must begin with one of 'F', 'B', 'I', 'W', 'FB'"),
        (("RUN", ("F", 1, 0)), "but rank 1 has 1 parameter copies"),
        (("RUN", ("REDUCE_GRADS", 1)), "but rank 1 has 1 parameter copies"),
        (("RUN", ("F", (0, 9000), 0)), r"op\.forward\.stage is 9000, must be 0 to 8191"),
        (("SEND", message), r'must be \("SEND", message, rank\)'),
        (("WAIT_SEND", message, 1), r'must be \("WAIT_SEND", message\)'),
        (("SEND", ("ACTIVATION", 0, 0), 1), "its message must be"),
        (("SEND", message, 2), r"peer is 2, must be 0 to 1"),
        (("SEND", message._replace(to_stage=3), 1), r"message\.to_stage is 3, must be 1, the next stage"),
        (("SEND", message._replace(microbatch=-1), 1), "is -1, must be 0 to"),
    ]:
        with pytest.raises(InvalidArgument, match=want) as refused:
            schedule.verify(actions=[good[0], [good[1][0], wrong]])
        assert re.search(r"actions\[1\]\[1\]|orders\[1\]\.actions\[1\]\.", str(refused.value))
    with pytest.raises(InvalidArgument, match="actions has 1 orders, must have 2, one for each rank"):
        schedule.verify(actions=good[:1])


@pytest.mark.parametrize("version", ["2.6", "2.10", "2.15"])
@pytest.mark.parametrize(
    ("kind", "ranks", "microbatches"), [("1f1b", 4, 6), ("dualpipe_v", 4, 8), ("zb_v", 3, 7), ("v_min", 4, 8)]
)
def test_the_messages_of_a_csv_are_verified(kind, ranks, microbatches, version):
    schedule = Schedule(kind, ranks, microbatches)
    comms = schedule_csv(schedule, version, "compute_comms")
    verification = verify_schedule_csv(comms, version, "compute_comms", transports=["asynchronous", "rendezvous"])
    assert verification.valid and {trial.receives for trial in verification.trials} == {"given"}
    only = verify_schedule_csv(schedule_csv(schedule, version), version)
    assert only.valid and "given" not in {trial.receives for trial in only.trials}


def test_swapped_and_crossing_messages_of_a_csv_are_found(tmp_path):
    path = tmp_path / "swapped.csv"
    path.write_text(SWAPPED)
    for source in (SWAPPED, path):
        finding = verify_schedule_csv(source).findings[0]
        assert (finding.kind, finding.ranks, finding.transports) == ("fifo_mismatch", [0, 1], ["asynchronous"])
        assert finding.text.startswith("message 0 of rank 0 to rank 1 is activation 0F0, received as activation 0F1")
        assert len(finding.counterexample.actions) == 2 and finding.counterexample.actions[1][0][0] == "RECEIVE"
    assert verify_schedule_csv(SWAPPED, transports="asynchronous_tagged").valid
    assert verify_schedule_csv(CROSSED).valid
    crossed = verify_schedule_csv(CROSSED, transports="rendezvous")
    assert [(finding.kind, sorted(finding.ranks)) for finding in crossed.findings] == [("deadlock", [0, 1])]
    with pytest.raises(InvalidArgument, match="row 1, column 2"):
        verify_schedule_csv("0F0,0X0\n")


def test_the_command_checks_the_messages_of_a_file(tmp_path, run):
    good, swapped, crossed = (tmp_path / f"{name}.csv" for name in ("good", "swapped", "crossed"))
    good.write_text(schedule_csv(Schedule("zb_v", 3, 4), "2.15", "compute_comms"))
    swapped.write_text(SWAPPED)
    crossed.write_text(CROSSED)
    code, out, err = run("check", good, "--torch", "2.15", "--format", "compute_comms")
    assert (code, err) == (0, "") and "as they stand in the file: asynchronous, rendezvous" in out
    code, out, err = run("check", swapped)
    assert (code, out) == (1, "") and err.startswith("python -m dualpipe check: swapped: its messages do not do it\n")
    assert "fifo_mismatch, asynchronous, rendezvous, grouped: message 0 of rank 0 to rank 1" in err
    assert "The same with micro-batches 0, 1 of direction 0" in err
    assert run("check", swapped, "--transport", "asynchronous_tagged")[0] == 0
    code, out, err = run("check", crossed)
    assert code == 0 and "- but rendezvous, rendezvous_tagged: deadlock: with rendezvous sends, rank 0 waits" in out
    code, out, err = run("check", crossed, "--transport", "asynchronous,rendezvous")
    assert code == 1 and "deadlock, rendezvous, rendezvous_tagged: " in err
    for words, want in (
        ([crossed, "--transport", "mpi"], "--transport is 'mpi', must be of asynchronous, "),
        (["gpipe", "--ranks", 2, "--microbatches", 2, "--torch", "2.15"], "SCHEDULE is no CSV of torch's"),
        ([crossed, "--format", "compute_only"], "row 1, column 2"),
    ):
        code, out, err = run("check", *words)
        assert (code, out) == (2, "") and want in err, err


def test_the_command_gives_the_counterexample_of_a_schedule(tmp_path, run):
    path = tmp_path / "broken.txt"
    path.write_text("0| 0F0 0F1 0B0 0B1\n1| 1F0 1B0 1B1 1F1\n")
    code, out, err = run("check", path)
    assert (code, out) == (1, "") and "broken: rank 1, position 2 (1B1): this backward comes before its F" in err
    assert "op_order, whatever the transport: " in err and "The same with micro-batches 1 of direction 0" in err


def test_every_kind_and_transport_has_its_name(root):
    pages = "".join((root / "include" / "dualpipe" / f"{page}.h").read_text() for page in ("verification", "action"))
    for prefix, names in (
        ("SCHEDULE_FINDING", {name: number for number, name in FINDING_KINDS.items()}),
        ("VERIFY", TRANSPORTS),
    ):
        found = re.findall(rf"DUALPIPE_{prefix}_(\w+) = (\d+)", pages)
        assert {name.lower(): int(number) for name, number in found} == names
    assert issubclass(dualpipe.Verification, Verification)
