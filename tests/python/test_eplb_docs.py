"""The Python in the manuals of the balancer runs, block after block of a page as one program."""

import re
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("page", "num_blocks", "said"),
    [("balance", 1, "layers"), ("loads", 3, "stay: ")],
)
def test_the_examples_of_a_page_run(root, tmp_path, page, num_blocks, said):
    text = (root / "docs" / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == num_blocks
    command = [sys.executable, "-c", "".join(blocks)]
    printed = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, check=True, text=True).stdout
    assert said in printed


def test_the_example_moves_experts_and_loses_no_token(root, tmp_path):
    command = [sys.executable, root / "examples" / "experts" / "main.py", "--windows", "2"]
    printed = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, check=True, text=True).stdout
    assert " copies in " in printed and "every token came to its expert" in printed
