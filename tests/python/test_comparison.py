"""Which placement: ``dualpipe.compare``, ``python -m dualpipe compare`` and ``plan --placement choose``."""

import re

import dualpipe
import pytest

COSTS = dualpipe.Costs(
    f=0.01, i=0.01, w=0.01, fb=0.025, output_bytes=1 << 20, activation_bytes=1 << 30, parameter_bytes=24 << 30
)
SMALL = {"ranks": 4, "microbatches": 8, "costs": COSTS, "iterations": 20}
WORDS = ["--ranks", 4, "--microbatches", 8, "--f", "10ms", "--i", "10ms", "--w", "10ms", "--fb", "25ms"]
FEW = ["--iterations", 20]


def test_candidates_are_ranked_and_as_they_say():
    comparison = dualpipe.compare(**SMALL, cap=4)
    candidates = comparison.candidates
    keys = [(not one.fits, one.reason is not None, one.makespan if one.reason is None else 0) for one in candidates]
    assert keys == sorted(keys) and len(candidates) == 28
    assert sum(one.is_planned for one in candidates) == 6
    assert {(one.placement, one.stages_per_rank) for one in candidates} == {
        ("linear", 1),
        ("v", 2),
        ("bidirectional", 1),
        *(("interleaved", stages) for stages in (2, 3, 4)),
    }
    for one in candidates:
        assert one.is_planned == (one.name == "planned")
        if one.reason is not None:
            continue
        schedule, timeline = one.schedule, one.timeline
        assert schedule.stages == 4 * one.stages_per_rank
        assert timeline.makespan == one.makespan >= one.lower_bound and timeline.bubble == one.bubble
        assert one.peak_activations == pytest.approx(max(schedule.check()) / one.stages_per_rank)
        assert one.parameter_copies == schedule.directions
        assert one.parameter_bytes == 24 * one.parameter_copies << 30
        # Stages are cut to the byte.
        parameters = timeline.peak_memory.max() - one.parameter_bytes
        assert one.peak_activation_bytes == pytest.approx(parameters, rel=1e-6)
        assert one.sent_messages > 0 and one.sent_bytes == one.sent_messages << 20
        assert one.fits == (one.peak_activations <= 4)
        assert one.excess_activations == pytest.approx(max(0.0, one.peak_activations - 4)) and one.excess_bytes == 0
    best = comparison.best
    assert best is candidates[0] and best.fits
    assert str(comparison).startswith("4 ranks, 8 micro-batches, at most 4 on each rank (activations)\n")
    assert repr(best) in repr(comparison)


def test_what_sizes_do_not_admit_is_listed_with_its_reason():
    comparison = dualpipe.compare(**{**SMALL, "microbatches": 5})
    impossible = {one.name: one for one in comparison.candidates if one.reason is not None}
    assert "must be even" in impossible["dualpipe"].reason
    assert impossible["dualpipe"].makespan == 0 and "not possible" in repr(impossible["dualpipe"])
    with pytest.raises(dualpipe.InvalidArgument, match=re.escape(impossible["dualpipe"].reason)):
        impossible["dualpipe"].schedule  # noqa: B018, it is what raises
    with pytest.raises(dualpipe.InvalidArgument, match="dualpipe on bidirectional, which is not possible"):
        impossible["dualpipe"].timeline  # noqa: B018, as above
    assert "not possible:\n" in str(comparison)


def test_costs_of_finer_stages_are_put_together():
    finer = dualpipe.Costs(f=[0.0025] * 16, i=[0.0025] * 16, w=[0.0025] * 16, fb=[0.00625] * 16)
    coarse = dualpipe.Costs(f=0.01, i=0.01, w=0.01, fb=0.025)
    of_finer, of_coarse = (dualpipe.compare(**{**SMALL, "costs": costs}) for costs in (finer, coarse))

    def figures(comparison):
        """Three stages of sixteen quarters do not come out even: not possible of the finer."""
        return [(c.name, c.placement, c.makespan) for c in comparison.candidates if c.stages_per_rank != 3]

    assert figures(of_finer) == figures(of_coarse)


def test_nothing_may_fit():
    comparison = dualpipe.compare(**SMALL, cap_bytes=1 << 30)
    assert comparison.best is None and all(not one.fits for one in comparison.candidates)
    assert any(one.excess_bytes > 0 for one in comparison.candidates)


def test_progress_stops_and_the_rest_is_not_made():
    told = []
    comparison = dualpipe.compare(**SMALL, progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told) and {total for _, total in told} == {120}
    comparison = dualpipe.compare(**SMALL, progress=lambda done, total: False)
    not_made = [one for one in comparison.candidates if one.reason is not None and "not made" in one.reason]
    assert len(not_made) == 5 and all(one.is_planned for one in not_made)
    comparison.close()
    with pytest.raises(dualpipe.InvalidHandle):
        str(comparison)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"costs": 3}, TypeError, "costs is 3, must be dualpipe.Costs"),
        (
            {"costs": dualpipe.Costs(f=[1] * 3, i=1, w=1)},
            dualpipe.InvalidArgument,
            "is 3, must be 1 or a multiple of 4",
        ),
        ({"cap": 0}, dualpipe.InvalidArgument, r"activations\[0\] is 0, must be"),
        ({"cap": [1, 2]}, dualpipe.InvalidArgument, "the number of entries is 2, must be 1 or 4"),
        ({"cap": 3, "cap_bytes": 3}, dualpipe.InvalidArgument, "cap and cap_bytes are both given"),
        ({"ranks": 0}, dualpipe.InvalidArgument, "num_ranks is 0, must be 1 to 4096"),
        ({"ranks": 4096, "microbatches": 100}, dualpipe.InvalidArgument, "is 409600, must be 1 to 262144"),
    ],
)
def test_what_is_wrong_is_said(given, error, words):
    with pytest.raises(error, match=words):
        dualpipe.compare(**{**SMALL, **given})


def test_the_command_prints_the_table(run):
    code, out, err = run("compare", *WORDS, "--cap", 4, *FEW)
    costs = dualpipe.Costs(f=0.01, i=0.01, w=0.01, fb=0.025)
    assert (code, out, err) == (0, str(dualpipe.compare(**{**SMALL, "costs": costs}, cap=4)), "")
    assert run("compare", *WORDS, "--cap", 4, "--cap-bytes", "1GiB")[0] == 2
    code, out, _ = run("compare", "--help")
    assert code == 0 and "python -m dualpipe compare --ranks 8" in out and "words:" in out


def test_a_plan_may_choose_its_placement(run, tmp_path):
    costs = dualpipe.Costs(f=0.01, i=0.01, w=0.01, fb=0.025)
    comparison = dualpipe.compare(**{**SMALL, "costs": costs}, cap=4)
    schedule = str(comparison.best.schedule)
    words = ["plan", *WORDS, "--placement", "choose", "--cap", 4, *FEW]
    assert run(*words) == (0, f"{comparison}\n{schedule}", "")
    out_file, svg = tmp_path / "best.txt", tmp_path / "best.svg"
    code, out, _ = run(*words, "--out", out_file, "--svg", svg)
    assert code == 0 and out == f"{comparison}wrote {out_file}\nwrote {svg}\n"
    assert out_file.read_text() == schedule and svg.read_text() == comparison.best.timeline.svg()
    code, _, err = run(*words, "--jitter", 0.1)
    assert code == 2 and "--jitter: not with --placement choose" in err
    code, _, err = run(
        "plan", *WORDS, "--placement", "choose", "--cap-bytes", "1KiB", "--parameter-bytes", "1MiB", *FEW
    )
    assert code == 2 and "no schedule on any of these placements keeps to the cap" in err
