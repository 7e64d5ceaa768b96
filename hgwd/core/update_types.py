"""Words shared by the update core: what it asks of its driver, its limits, and how it refuses.

The core is sans-IO: each operation is a generator that yields `Need`, `Load` or `Store` and is sent the answer.
`Need` and `Load` are answered with bytes, or None when there is no such file (HTTP 403/404; nothing stored).
A network failure is not an answer: the driver stops driving, nothing half-done remains, the next poll starts over.
"""

from __future__ import annotations

import enum
from collections.abc import Generator
from typing import Final, TypeVar

import attrs

ROOT_BYTES_MAX: Final = 512_000
TIMESTAMP_BYTES_MAX: Final = 16_384
SNAPSHOT_BYTES_MAX: Final = 2_000_000
TARGETS_BYTES_MAX: Final = 5_000_000
DIRECTOR_BYTES_MAX: Final = 256 * 1024
ROOT_ROTATIONS_MAX: Final = 256
DELEGATIONS_MAX: Final = 32


class Source(enum.StrEnum):
    """The two repositories that must agree (design §5)."""

    IMAGE = "image"
    DIRECTOR = "director"


@attrs.frozen
class Need:
    """Fetch `path` below the metadata base of `source`; more than `max_bytes` is a refusal, never a truncation."""

    source: Source
    path: str
    max_bytes: int


@attrs.frozen
class Load:
    """Read what was stored under `name` (`root`, `timestamp`, a role name)."""

    source: Source
    name: str


@attrs.frozen
class Store:
    """Keep verified bytes under `name`: atomic and fsynced before the answer (None) is sent back."""

    source: Source
    name: str
    data: bytes


ResultT = TypeVar("ResultT")
Steps = Generator[Need | Load | Store, bytes | None, ResultT]


class Cause(enum.StrEnum):
    """Why something was refused; the word in status, in reports (`attack`) and in test names."""

    UNSIGNED = "unsigned"
    EXPIRED = "expired"
    ROLLBACK = "rollback"
    MIX_AND_MATCH = "mix-and-match"
    BAD_FORMAT = "bad-format"
    BAD_HASH = "bad-hash"
    TOO_LARGE = "too-large"
    TRUNCATED = "truncated"
    MISSING = "missing"
    SLOW = "slow"
    UNAVAILABLE = "unavailable"
    ROOT_CHAIN = "root-chain"
    DELEGATIONS = "delegations"
    UNKNOWN_CRITICAL = "unknown-critical"
    WRONG_GATEWAY = "wrong-gateway"
    WRONG_MODEL = "wrong-model"
    WRONG_PACKAGE = "wrong-package"
    DISAGREE = "repositories-disagree"
    NOT_IN_IMAGE = "not-in-image-repository"
    BELOW_FLOOR = "below-floor"
    BUDGET = "data-budget"


class RefusedError(Exception):
    """Metadata, a document or a package was not accepted. Nothing was changed; running software keeps running."""

    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(f"{cause}: {message}")
        self.cause: Final = cause
        self.message: Final = message
