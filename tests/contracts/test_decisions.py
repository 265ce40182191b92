"""Decision records: each has a number of its own, says it in its title, and no number is left out."""

from __future__ import annotations

from pathlib import Path

DECISIONS = Path(__file__).parents[2] / "docs" / "decisions"


def test_decisions_are_numbered_one_by_one() -> None:
    files = sorted(DECISIONS.glob("*.md"))
    assert [int(file.name[:4]) for file in files] == list(range(1, len(files) + 1))
    for number, file in enumerate(files, 1):
        assert file.read_text(encoding="utf-8").startswith(f"# {number}. "), file.name
