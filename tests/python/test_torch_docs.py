"""The blocks of docs/torch.md run, one after the other, as one program on each of two ranks."""

import contextlib
import io
import re

import pytest

torch = pytest.importorskip("torch")

NAME = "docs/torch.md"


def reading_rank(rank, text):
    """What a reader's program prints who takes every block."""
    torch.manual_seed(0)  # the blocks draw their batches, the same on every rank
    names, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        for match in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            lines_before = text[: match.start(1)].count("\n")
            exec(compile("\n" * lines_before + match[1], NAME, "exec"), names)  # noqa: S102, it is what users run
    gradients = [names[name] for name in ("model", "simple", "masked", "split", "both", "replicated")]
    assert all(one.grad is not None for pipeline in gradients for one in pipeline.parameters())
    both = [[one.grad.tolist() for one in copy.parameters()] for copy in names["both"].module]
    return printed.getvalue(), both


def test_the_blocks_run_on_two_ranks(ranks, root):
    text = (root / NAME).read_text()
    assert text.count("```python") == 8
    results = ranks.run(2, reading_rank, text)
    for rank, (printed, _) in enumerate(results):
        assert printed.startswith("dualpipe_v, 2 ranks, 6 micro-batches (measured)\n"), printed
        assert f"\n{rank}|" in printed
    # The two copies of each stage have one gradient, as the text says.
    assert results[0][1] == results[1][1][::-1]
