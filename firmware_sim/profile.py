"""Read the profile of a gateway: its sizes as data, each saying whether anybody knows it.

Rules
- A profile is a TOML file in `profiles/`; the code holds no hardware number.
- Every number is a `Fact`: the value, `assumed` when nothing public confirms it, and why we took it.
- An unknown key, a missing key or a wrong type is refused with one line that names the key.

It does not enforce anything: the lab (`firmware_sim.lab`) and the machine (`firmware_sim.boot`) do.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec

DEFAULT_PROFILE = "PR-500"
MIB = 1 << 20

Front = Literal["agent-https", "restic-rest", "sftp"]


class ProfileError(Exception):
    """A profile is unknown or its file is malformed; the text names the profile and the key."""


class Number(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A size or count of the profile, ≥ 1, with its standing."""

    value: int
    assumed: bool
    why: str


class Word(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A named property of the profile, with its standing."""

    value: str
    assumed: bool
    why: str


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One gateway profile, as in its file."""

    name: str
    title: str
    series: str
    fronts: tuple[Front, ...]
    fronts_off: dict[Front, str]
    access: Word
    machine: Word
    cores: Number
    ram_mib: Number
    cpu_percent: Number
    memory_limit_mib: Number
    memory_budget_mib: Number
    slot_mib: Number
    data_flash_mib: Number
    spool_limit_mib: Number
    pack_limit_mib: Number
    package_slots: Number
    joint_stored_bytes_below: Number
    joint_footprint_bytes_below: Number

    @property
    def memory_limit_bytes(self) -> int:
        """Return the hard limit of the gateway's process tree in bytes."""
        return self.memory_limit_mib.value * MIB

    @property
    def memory_budget_bytes(self) -> int:
        """Return what all our processes may use together, delivered software apart, in bytes (design §9)."""
        return self.memory_budget_mib.value * MIB

    @property
    def spool_limit_bytes(self) -> int:
        """Return the room of the upload spool in bytes."""
        return self.spool_limit_mib.value * MIB

    def facts(self) -> dict[str, Number | Word]:
        """Return every fact by name, in file order."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in values.items() if isinstance(value, Number | Word)}

    def assumptions(self) -> dict[str, str]:
        """Return name → reason of every fact that nothing public confirms."""
        return {name: fact.why for name, fact in self.facts().items() if fact.assumed}


def profile_names() -> list[str]:
    """List the profiles that can be loaded, sorted."""
    folder = resources.files("firmware_sim") / "profiles"
    texts = (entry.read_text("utf-8") for entry in folder.iterdir() if entry.name.endswith(".toml"))
    return sorted(parse_profile(text).name for text in texts)


def load_profile(name: str = DEFAULT_PROFILE) -> Profile:
    """Load a profile by name (`PR-500`) or by the path of a TOML file.

    Raises:
        ProfileError: no such profile, or its file is malformed.
    """
    path = Path(name)
    if path.suffix == ".toml" and path.is_file():
        return parse_profile(path.read_text("utf-8"))
    if "/" in name:
        raise ProfileError(f"profile: no file {name!r}")
    found = resources.files("firmware_sim") / "profiles" / f"{name.lower()}.toml"
    if not found.is_file():
        raise ProfileError(f"profile: expected one of {', '.join(profile_names())}, got {name!r}")
    return parse_profile(found.read_text("utf-8"))


def parse_profile(text: str) -> Profile:
    """Parse the text of a profile file.

    Raises:
        ProfileError: not TOML, an unknown or missing key, a wrong type, a number below 1, a front listed twice.
    """
    try:
        profile = msgspec.convert(tomllib.loads(text), Profile)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ProfileError(f"profile: {error}") from error
    for name, fact in profile.facts().items():
        if isinstance(fact, Number) and fact.value < 1:
            raise ProfileError(f"profile {profile.name}: {name} must be at least 1, got {fact.value}")
        if not fact.why:
            raise ProfileError(f"profile {profile.name}: {name} gives no reason")
    if set(profile.fronts) & set(profile.fronts_off):
        raise ProfileError(f"profile {profile.name}: a front is both on and off")
    if profile.memory_budget_mib.value > profile.memory_limit_mib.value:
        raise ProfileError(f"profile {profile.name}: memory_budget_mib is above memory_limit_mib")
    return profile
