"""What the demo found out: one record per step, printed as it happens and written as JSON at the end.

A step is *verified* only when its body returned; what it noted in `facts` is what was checked, never what was hoped.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import attrs

from wire.units import format_bytes

_NAME_CHARS = 44


@attrs.define
class Step:
    """One step of the main job. `seconds` and `size_bytes` are measured, `facts` were verified."""

    name: str
    seconds: float = 0.0
    size_bytes: int | None = None
    facts: list[str] = attrs.Factory(list)
    verified: bool = False
    failure: str | None = None

    def note(self, fact: str) -> None:
        """Record something that was checked and held."""
        self.facts.append(fact)


@attrs.define
class Report:
    """The whole run. `bill` and `memory` are filled by the steps that measure them."""

    out: TextIO = attrs.Factory(lambda: sys.stdout)
    steps: list[Step] = attrs.Factory(list)
    bill: dict[str, object] = attrs.Factory(dict)
    memory: dict[str, object] = attrs.Factory(dict)
    pages: dict[str, str] = attrs.Factory(dict)

    @property
    def verified(self) -> bool:
        """True when there is at least one step and every one was verified."""
        return bool(self.steps) and all(step.verified for step in self.steps)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Time a step and print its outcome; a raised error is recorded, printed and raised on."""
        step = Step(name)
        self.steps.append(step)
        print(f"  {name:<{_NAME_CHARS}}", end="", file=self.out, flush=True)
        started = time.monotonic()
        try:
            yield step
            step.verified = True
        except BaseException as error:
            step.failure = str(error) or type(error).__name__
            raise
        finally:
            step.seconds = round(time.monotonic() - started, 2)
            print(_outcome(step), file=self.out, flush=True)

    def write(self, path: Path) -> None:
        """Write `demo-report.json`."""
        document = {
            "verified": self.verified,
            "steps": [attrs.asdict(step) for step in self.steps],
            "memory": self.memory,
            "bill": self.bill,
            "pages": self.pages,
        }
        path.write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _outcome(step: Step) -> str:
    size = f"{format_bytes(step.size_bytes):>12}" if step.size_bytes is not None else " " * 12
    head = f"{step.seconds:7.1f} s {size}  {'verified' if step.verified else 'FAILED'}"
    lines = [f"      · {fact}" for fact in step.facts]
    if step.failure:
        lines.append(f"      ! {step.failure}")
    return "\n".join([head, *lines])
