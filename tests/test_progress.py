"""Progress where there is no terminal: a line now and then, and one at the end."""

from __future__ import annotations

import pytest

from domainkit.progress import bar


def test_more_than_was_announced_leaves_no_time_below_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("terms", 30_000, "tokens") as advance:
        advance(20_000)
        advance(10_008)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("terms: 30,008 of 30,000 tokens, ") and line.endswith(" tokens/s, 0 s left")
