"""A NAS in a test: its state directory, its commands in this process, their events checked against the schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import msgspec

from nas_agent.cli import main
from nas_agent.events import AnyEvent


@attrs.define
class Nas:
    """One NAS with its state directory; `run` returns the exit code and the events of a command."""

    home: Path
    capture: Callable[[], Any]
    said: str = ""

    @property
    def vault(self) -> Path:
        return self.home / "vault"

    @property
    def target(self) -> str:
        return f"file://{self.vault}"

    def run(self, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
        code = main([*arguments, "--state", str(self.home / "state"), "--json"])
        lines = self.capture().out.splitlines()
        return code, [checked(line) for line in lines]

    def text(self, *arguments: str) -> int:
        code = main([*arguments, "--state", str(self.home / "state")])
        captured = self.capture()
        self.said = captured.out + captured.err
        return code

    def backup(self, source: Path, *more: str) -> tuple[int, list[dict[str, Any]]]:
        return self.run("backup", str(source), "--to", self.target, *more)

    def restore(self, to: Path, *more: str, generation: str = "latest") -> tuple[int, list[dict[str, Any]]]:
        return self.run("restore", generation, *more, "--to", str(to), *self.reading)

    @property
    def reading(self) -> tuple[str, ...]:
        return ("--from", self.target, "--passphrase-file", str(self.home / "pass"))


def checked(line: str) -> dict[str, Any]:
    """Every line of every test fits the schema: the decoder is strict about fields and types."""
    msgspec.json.decode(line, type=AnyEvent)
    return json.loads(line)
