"""The agent's optional configuration file, `nas-agent.toml` in the state directory.

Everything can be said on the command line as well; the file serves runs by a timer. An unknown key or a value out of
range is one line and exit code 2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from runtime.config import load_config

DEFAULT_SET = "default"
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class BackupSetConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One set of sources that are backed up together, `[sets.NAME]`."""

    sources: Annotated[tuple[_Text, ...], msgspec.Meta(min_length=1, max_length=100)]
    target: _Text | None = None
    excludes: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=1000)] = ()
    one_file_system: bool = False


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file.

    Attributes:
        target: where sets go that name no target of their own; default: the paired gateway.
        keep_trying_s: how long a run goes on trying while the line, the gateway or its spool says "not now".
        sets: backup sets by name.
    """

    target: _Text | None = None
    keep_trying_s: Annotated[int, msgspec.Meta(ge=0, le=30 * 86400, extra={"unit": "seconds"})] = 6 * 3600
    sets: dict[str, BackupSetConfig] = {}


def load_agent_config(state: Path) -> AgentConfig:
    """Read the file, or return the defaults when there is none; raises `runtime.errors.ConfigError`."""
    path = state / "nas-agent.toml"
    return load_config(path, AgentConfig) if path.exists() else AgentConfig()
