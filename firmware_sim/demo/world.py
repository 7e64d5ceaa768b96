"""The demo's world: one lab, the directories of its four parties, and the real programs as processes.

Rules: every program is started as a user would start it, by its command line; nothing is imported from it. A command that
does not end as expected raises `DemoError` with its last words.
"""

from __future__ import annotations

import json
import re
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs

from firmware_sim.lab import Host, Lab, Process

START_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 120.0
POLL_S = 0.25


class DemoError(Exception):
    """A step did not do what it must."""


@attrs.define
class World:
    """Where everything of one demo run lies. `root` is scratch space, removed at the end by its owner."""

    lab: Lab
    root: Path
    admin_password: str = attrs.field(factory=lambda: secrets.token_hex(8), repr=False)
    services: list[Process] = attrs.Factory(list)

    @property
    def carrier(self) -> Path:
        """Directory of the carrier side."""
        return self.root / "carrier"

    @property
    def operator(self) -> Path:
        """Directory of the service operator."""
        return self.root / "operator"

    @property
    def nas(self) -> Path:
        """State directory of the NAS."""
        return self.root / "nas"

    def gateway(self, line: int) -> Path:
        """Directory of the gateway of a line."""
        return self.root / f"gateway-{line}"

    def deliver(self, *words: str | Path, stdin: bytes = b"", expect: int = 0) -> str:
        """Run `deliver …` on the carrier's host and return what it printed."""
        return run(self.lab.carrier, "deliver.cli", words, stdin=stdin, expect=expect)

    def admin(self, *words: str | Path) -> str:
        """Run `deliver admin …`."""
        return self.deliver("admin", "--config", self.carrier / "deliver.toml", *words)

    def hgwd(self, line: int, *words: str, stdin: bytes = b"") -> str:
        """Run `hgwd …` on the gateway of a line."""
        config = self.gateway(line) / "hgwd.toml"
        return run(self.lab.gateway(line), "hgwd.cli", ("--config", config, *words), stdin=stdin)

    def gateway_status(self, line: int) -> Mapping[str, object]:
        """Return what `hgwd status --json` says."""
        return dict(json.loads(self.hgwd(line, "status", "--json")))

    def nas_agent(self, *words: str | Path, expect: int = 0, timeout_s: float = COMMAND_TIMEOUT_S) -> Events:
        """Run `nas-agent … --json` on the NAS of line 1 and return its events."""
        words = (*words, "--state", self.nas, "--json")
        return Events.parse(run(self.lab.nas(1), "nas_agent.cli", words, expect=expect, timeout_s=timeout_s))

    def start(self, host: Host, module: str, *words: str | Path, name: str) -> Process:
        """Start a program on a host and return at once."""
        return host.spawn(command(module, words), name=name)


@attrs.frozen
class Events:
    """The `--json` events of one `nas-agent` run, in order."""

    items: tuple[Mapping[str, object], ...]

    @classmethod
    def parse(cls, text: str) -> Events:
        """Read what was printed; other lines (a launcher's words) are left out."""
        return cls(tuple(json.loads(line) for line in text.splitlines() if line.startswith("{")))

    def of(self, kind: str) -> list[Mapping[str, object]]:
        """Return the events of one kind."""
        return [item for item in self.items if item.get("event") == kind]

    def last(self, kind: str) -> Mapping[str, object]:
        """Return the last event of a kind, or raise `DemoError`."""
        found = self.of(kind)
        if not found:
            seen = self.items[-1] if self.items else "nothing"
            raise DemoError(f"nas-agent: expected a {kind!r} event, the last was {seen}")
        return found[-1]


def command(module: str, words: Sequence[str | Path]) -> list[str]:
    """Return the argument vector of one of our programs."""
    return [sys.executable, "-m", module, *map(str, words)]


def run(
    host: Host,
    module: str,
    words: Sequence[str | Path],
    *,
    stdin: bytes = b"",
    expect: int = 0,
    timeout_s: float = COMMAND_TIMEOUT_S,
) -> str:
    """Run a program to its end and return its standard output; another exit status is a `DemoError`."""
    done = host.run(command(module, words), timeout_s=timeout_s, check=False, stdin=stdin)
    if done.returncode != expect:
        said = (done.stdout + done.stderr).decode("utf-8", "replace").strip()[-1500:]
        raise DemoError(f"{module} {words[0]}: expected exit {expect}, got {done.returncode}: {said}")
    return done.stdout.decode()


def wait_until(what: str, ready: Callable[[], bool], timeout_s: float) -> None:
    """Ask `ready` until it is true; `DemoError` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise DemoError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(POLL_S)


def find(pattern: str, text: str) -> str:
    """Return the first group of a pattern in a program's output, or raise `DemoError`."""
    match = re.search(pattern, text)
    if match is None:
        raise DemoError(f"expected {pattern!r} in: {text[-500:]}")
    return match[1]
