"""What can happen that costs something: append-only events, each with the token of the order that caused it.

Rules
- An event is never changed or removed; a mistake is corrected by a further event.
- `token` is unique for ever: the same order recorded twice counts once.
- `software` is written `<operator>/<software>`; `target` is the customer ID of the line (JNT: target = line).
- It does not do: prices.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from runtime.errors import CorruptDataError

_Size = Annotated[int, msgspec.Meta(ge=1)]


class _Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    at_s: int
    payer: str
    token: str


class SoftwareRegistered(_Event, frozen=True, kw_only=True, tag="jnt-software-registered"):
    """First file of a software. Softwares of one `work` share one base work fee (JNT-12)."""

    software: str
    stored_bytes: _Size
    work: str


class SoftwareChanged(_Event, frozen=True, kw_only=True, tag="jnt-software-changed"):
    """A new version or file of a registered software: "change work" (JNT-13)."""

    software: str
    stored_bytes: _Size
    work: str


class SoftwareAmended(_Event, frozen=True, kw_only=True, tag="jnt-software-amended"):
    """Attributes changed without a new file: "other change" (JNT-13)."""

    software: str
    work: str


class SoftwareEnded(_Event, frozen=True, kw_only=True, tag="jnt-software-ended"):
    """The software is no longer kept; all its targets end with it."""

    software: str


class TargetRegistered(_Event, frozen=True, kw_only=True, tag="jnt-target-registered"):
    """A line receives the software; `footprint_bytes` is that of the variant for its gateway (JNT-06)."""

    software: str
    target: str
    footprint_bytes: _Size


class TargetChanged(_Event, frozen=True, kw_only=True, tag="jnt-target-changed"):
    """Another version or variant goes to a registered target."""

    software: str
    target: str
    footprint_bytes: _Size


class TargetEnded(_Event, frozen=True, kw_only=True, tag="jnt-target-ended"):
    """The line no longer receives the software."""

    software: str
    target: str


class PlanOpened(_Event, frozen=True, kw_only=True, tag="azk-plan-opened"):
    """An Azukeru PRO contract begins."""

    contract: str
    plan: str


class PlanChanged(_Event, frozen=True, kw_only=True, tag="azk-plan-changed"):
    """The contract has another plan from the next month on."""

    contract: str
    plan: str


class PlanEnded(_Event, frozen=True, kw_only=True, tag="azk-plan-ended"):
    """The contract ended."""

    contract: str


Event = (
    SoftwareRegistered
    | SoftwareChanged
    | SoftwareAmended
    | SoftwareEnded
    | TargetRegistered
    | TargetChanged
    | TargetEnded
    | PlanOpened
    | PlanChanged
    | PlanEnded
)


def encode_event(event: Event) -> bytes:
    """Return the stored form of an event."""
    return msgspec.json.encode(event)


def decode_event(data: bytes) -> Event:
    """Return the event of a stored row; raises `CorruptDataError`."""
    try:
        event: Event = msgspec.json.decode(data, type=Event)
    except msgspec.MsgspecError as error:
        raise CorruptDataError(f"ledger event: {error}") from error
    return event
