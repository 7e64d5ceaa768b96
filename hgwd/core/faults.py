"""Fault codes of software modules, in the numbers of USP (TR-369) where it has one (design §5.11).

7222 to 7232 are USP's; 7800 to 7999 is its range for vendors. A report carries the number, a page the sentence.
"""

from __future__ import annotations

import enum
from typing import Final

from hgwd.core.update_types import Cause


class Fault(enum.IntEnum):
    """Why a deployment or execution unit is not in the state the carrier asked for."""

    UNKNOWN_EE = 7223
    EE_MISMATCH = 7225
    RESOURCES_EXCEEDED = 7227
    UNKNOWN_DU = 7228
    INVALID_DU_STATE = 7229
    DOWNGRADE = 7230
    BARRIER_MISSING = 7801
    START_FAILED = 7802
    HEALTH_FAILED = 7803
    CRASH_LOOP = 7804
    NOT_AUTHENTIC = 7805
    CORRUPT = 7806
    DOWNLOAD_FAILED = 7807
    BUDGET = 7808
    LAUNCHER_DOWN = 7809
    MEMORY_EXCEEDED = 7810
    NETWORK_NOT_OFFERED = 7811


SENTENCES: Final[dict[Fault, str]] = {
    Fault.UNKNOWN_EE: "the package needs a runtime this gateway does not have",
    Fault.EE_MISMATCH: "the package is for another model or maker",
    Fault.RESOURCES_EXCEEDED: "the package needs more memory, flash or processes than there is",
    Fault.UNKNOWN_DU: "no such software on this gateway",
    Fault.INVALID_DU_STATE: "the software is in a state that does not allow this",
    Fault.DOWNGRADE: "older than the lowest release its operator allows",
    Fault.BARRIER_MISSING: "an isolation barrier is missing on this gateway: not started, never run weaker",
    Fault.START_FAILED: "the software did not start",
    Fault.HEALTH_FAILED: "the software started but did not become or stay healthy",
    Fault.CRASH_LOOP: "the software keeps ending; no more restarts until the next change",
    Fault.NOT_AUTHENTIC: "not signed as required, expired, or the two repositories disagree",
    Fault.CORRUPT: "the package is damaged or not the announced one",
    Fault.DOWNLOAD_FAILED: "the package could not be fetched completely",
    Fault.BUDGET: "the data budget of this gateway or rollout is used up",
    Fault.LAUNCHER_DOWN: "the launcher does not answer",
    Fault.MEMORY_EXCEEDED: "the software passed its memory cap and was ended",
    Fault.NETWORK_NOT_OFFERED: "the package asks for LAN access, which this gateway cannot confine yet",
}

FAULT_OF_CAUSE: Final[dict[Cause, Fault]] = {
    Cause.UNSIGNED: Fault.NOT_AUTHENTIC,
    Cause.EXPIRED: Fault.NOT_AUTHENTIC,
    Cause.ROLLBACK: Fault.NOT_AUTHENTIC,
    Cause.MIX_AND_MATCH: Fault.NOT_AUTHENTIC,
    Cause.BAD_FORMAT: Fault.CORRUPT,
    Cause.BAD_HASH: Fault.CORRUPT,
    Cause.TOO_LARGE: Fault.RESOURCES_EXCEEDED,
    Cause.TRUNCATED: Fault.DOWNLOAD_FAILED,
    Cause.MISSING: Fault.DOWNLOAD_FAILED,
    Cause.SLOW: Fault.DOWNLOAD_FAILED,
    Cause.UNAVAILABLE: Fault.DOWNLOAD_FAILED,
    Cause.ROOT_CHAIN: Fault.NOT_AUTHENTIC,
    Cause.DELEGATIONS: Fault.NOT_AUTHENTIC,
    Cause.UNKNOWN_CRITICAL: Fault.UNKNOWN_EE,
    Cause.WRONG_GATEWAY: Fault.NOT_AUTHENTIC,
    Cause.WRONG_MODEL: Fault.EE_MISMATCH,
    Cause.WRONG_PACKAGE: Fault.CORRUPT,
    Cause.DISAGREE: Fault.NOT_AUTHENTIC,
    Cause.NOT_IN_IMAGE: Fault.NOT_AUTHENTIC,
    Cause.BELOW_FLOOR: Fault.DOWNGRADE,
    Cause.BUDGET: Fault.BUDGET,
}

ATTACKS: Final = frozenset(
    {
        Cause.UNSIGNED,
        Cause.EXPIRED,
        Cause.ROLLBACK,
        Cause.MIX_AND_MATCH,
        Cause.BAD_HASH,
        Cause.TOO_LARGE,
        Cause.SLOW,
        Cause.ROOT_CHAIN,
        Cause.DELEGATIONS,
        Cause.WRONG_GATEWAY,
        Cause.DISAGREE,
        Cause.NOT_IN_IMAGE,
        Cause.BELOW_FLOOR,
    }
)
"""Causes that a report names as signs of an attack (Uptane: attack indicator), not as a fault of the gateway."""
