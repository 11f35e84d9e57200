# SPDX-License-Identifier: Apache-2.0
"""The examples of the documentation run."""

import pathlib
import re

import pytest

DOCS = pathlib.Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("page", ["regions.md", "export.md"])
def test_examples(page, tmp_path, monkeypatch):
    """All Python of a page, from top to bottom; the assertions in it hold."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    scope = {}
    for block in blocks:
        exec(compile(block, page, "exec"), scope)
