"""Name what the simulator can break, in one vocabulary for the lab and the machine.

Line faults are states of one access line: healthy until set, healthy again when cleared. What each must not cost is
fixed by the requirements: nothing acknowledged is lost, and the programs recover without a human.

Power cuts are events, not states: `Host.power_cut` kills a host's whole process tree at once; what was not fsynced
by then may be lost (kill -9 alone keeps the page cache; block-level replay is the stronger proof).
"""

from __future__ import annotations

from enum import StrEnum

import attrs


class Cut(StrEnum):
    """How a line is cut."""

    NO = "no"
    LINK_DOWN = "link-down"  # the gateway sees the carrier go on its WAN port
    SILENT = "silent"  # packets vanish in both directions: only time-outs tell


def _percentage(_: object, attribute: attrs.Attribute[int], value: int) -> None:
    if not 0 <= value <= 1000:
        raise ValueError(f"{attribute.name}: expected 0…1000 of a thousand packets, got {value}")


def _not_negative(_: object, attribute: attrs.Attribute[int], value: int) -> None:
    if value < 0:
        raise ValueError(f"{attribute.name}: expected 0 (off) or more, got {value}")


@attrs.frozen(kw_only=True)
class LineFaults:
    """The faults of one line at one moment.

    Args:
        cut: whether and how the line is interrupted.
        loss_permille: packets lost out of a thousand, each direction, 0…1000.
        rate_bits_per_s: limit of each direction; 0 = unlimited.
        delay_ms: added to each direction; 0 = none.
    """

    cut: Cut = Cut.NO
    loss_permille: int = attrs.field(default=0, validator=_percentage)
    rate_bits_per_s: int = attrs.field(default=0, validator=_not_negative)
    delay_ms: int = attrs.field(default=0, validator=_not_negative)


HEALTHY = LineFaults()
