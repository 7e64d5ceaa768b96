"""Metrics of one program, and the handler that shows them in Prometheus' text format.

Rules: names carry the unit (`hgwd_backup_bytes_total`); label values come from small fixed sets, never a
customer, line, device or path. One registry per program run, passed to who needs it; nothing global.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from runtime.http.types import Request, Response

LABEL_VALUES_MAX = 64
DURATION_BUCKETS_S = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0)
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Metrics:
    """A registry; `namespace` begins every name. Starts with `process_resident_memory_bytes`."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.registry = CollectorRegistry(auto_describe=True)
        resident = Gauge(
            "process_resident_memory_bytes", "Resident memory of this process", registry=self.registry
        )
        resident.set_function(resident_memory_bytes)

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        """Register a counter; `name` without `_total`."""
        return Counter(f"{self.namespace}_{name}", text, tuple(labels), registry=self.registry)

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        """Register a gauge; its `set_function` makes it read a value when asked."""
        return Gauge(f"{self.namespace}_{name}", text, tuple(labels), registry=self.registry)

    def histogram(
        self, name: str, text: str, labels: Sequence[str] = (), buckets: Sequence[float] = DURATION_BUCKETS_S
    ) -> Histogram:
        """Register a histogram of durations in seconds (other units: give buckets)."""
        full_name = f"{self.namespace}_{name}"
        return Histogram(full_name, text, tuple(labels), buckets=tuple(buckets), registry=self.registry)

    def render(self) -> bytes:
        """Return all metrics as text."""
        return prometheus_client.generate_latest(self.registry)

    async def handle(self, request: Request) -> Response:
        """Answer `GET /metrics`; no I/O but reading /proc/self."""
        return Response(200, (("content-type", prometheus_client.CONTENT_TYPE_LATEST),), self.render())


def resident_memory_bytes() -> int:
    """Return this process's resident memory (Linux /proc/self/statm)."""
    fd = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(fd, 128).split()[1]) * _PAGE_BYTES
    finally:
        os.close(fd)
