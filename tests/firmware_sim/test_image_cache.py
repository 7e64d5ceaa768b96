"""Results of an image build are named by their inputs: made once, made anew when an input changes, never half."""

from __future__ import annotations

from pathlib import Path

import pytest

from firmware_sim.boot.image import _cached


def test_the_same_inputs_are_made_once_and_a_changed_one_anew(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(out: Path) -> None:
        made.append(out)
        (out / "result").write_text(str(len(made)))

    first = _cached(tmp_path, "root", [b"a", b"bc"], make)
    assert _cached(tmp_path, "root", [b"a", b"bc"], make) == first
    # Inputs are counted, not glued together.
    other = _cached(tmp_path, "root", [b"ab", b"c"], make)
    third = _cached(tmp_path, "kernel", [b"a", b"bc"], make)
    assert len({first, other, third}) == len(made) == 3
    assert (first / "result").read_text() == "1"


def test_a_build_that_fails_leaves_nothing_to_be_taken_for_a_result(tmp_path: Path) -> None:
    def fail(out: Path) -> None:
        (out / "half").write_text("")
        raise RuntimeError("no space left")

    with pytest.raises(RuntimeError):
        _cached(tmp_path, "root", [b"a"], fail)
    assert list(tmp_path.iterdir()) == []
