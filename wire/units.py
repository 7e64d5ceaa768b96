"""Units of size, exactly as the seeds mean them."""

from __future__ import annotations

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30  # AZK-02: 1 GB of a plan is 2^30 bytes
TIB = 1 << 40  # AZK-02: 1 TB is 1,024 GB

_STEPS = (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB))


def format_bytes(size_bytes: int) -> str:
    """Return a size for people, e.g. `1.5 MiB`; exact below 1 KiB."""
    for unit, factor in _STEPS:
        if abs(size_bytes) >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes} B"
