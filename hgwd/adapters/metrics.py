"""hgwd's metrics (names with units; labels from fixed sets, never a device, line or customer)."""

from __future__ import annotations

from typing import Final

from hgwd.adapters.forwarder import ForwardStats
from hgwd.adapters.spool_rows import SpoolTotals
from hgwd.core.status import LineStatus
from runtime.metrics import Metrics

CAUSES: Final = frozenset(
    [
        "bad-hash",
        "bad-request",
        "conflict",
        "draining",
        "line-down",
        "not-found",
        "quota-full",
        "refused",
        "session-over",
        "spool-full",
        "too-large",
        "unavailable",
    ]
)


class RelayMetrics:
    """What the relay counts; gauges are refreshed by `refresh` before they are read."""

    def __init__(self, metrics: Metrics) -> None:
        self._spool_bytes = metrics.gauge("spool_bytes", "Bytes spooled and not stored yet")
        self._rejected_bytes = metrics.gauge("spool_rejected_bytes", "Bytes the service refused for good")
        self._oldest = metrics.gauge("spool_oldest_age_seconds", "Age of the oldest pack not stored yet")
        self._lost = metrics.gauge("spool_lost_packs", "Acknowledged packs that are gone from the flash")
        self._stored_at = metrics.gauge("last_stored_timestamp_seconds", "When a pack was last stored")
        self._line_up = metrics.gauge("line_up", "1 when the service takes this line, else 0")
        self._forwarded = metrics.gauge(
            "forwarded_bytes_total", "Bytes stored by the service since the start"
        )
        self._forwarded_seen_bytes = 0
        self._refusals = metrics.counter("refusals", "Requests refused on the LAN", ("cause",))

    def count_refusal(self, code: str) -> None:
        """Count a refusal by its error code."""
        self._refusals.labels(code if code in CAUSES else "other").inc()

    def refresh(self, totals: SpoolTotals, stats: ForwardStats, line: LineStatus, now_s: float) -> None:
        """Take over the present values."""
        oldest_at_s = totals.oldest_spooled_at_s
        self._spool_bytes.set(totals.spooled_bytes)
        self._rejected_bytes.set(totals.rejected_bytes)
        self._oldest.set(max(0.0, now_s - oldest_at_s) if oldest_at_s is not None else 0.0)
        self._lost.set(totals.lost_packs)
        self._stored_at.set(stats.last_stored_at_s or 0.0)
        self._line_up.set(1 if line.state == "up" else 0)
        self._forwarded.inc(stats.forwarded_bytes - self._forwarded_seen_bytes)
        self._forwarded_seen_bytes = stats.forwarded_bytes
