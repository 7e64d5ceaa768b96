"""Puts the status document together from the live parts; used by page, control socket and metrics."""

from __future__ import annotations

import os

import attrs

from hgwd.adapters.forwarder import Forwarder
from hgwd.adapters.lan_devices import LanDevices
from hgwd.adapters.metrics import RelayMetrics
from hgwd.adapters.spool import Spool
from hgwd.adapters.state import GatewayState
from hgwd.adapters.upstream import StorageUpstream
from hgwd.config import HgwdConfig
from hgwd.core.status import (
    Condition,
    DeviceStatus,
    GatewayStatus,
    LineDocument,
    QueueStatus,
    find_conditions,
    sort_conditions,
)
from hgwd.update_service import UpdateService
from runtime.clock import Clock
from runtime.metrics import resident_memory_bytes


@attrs.frozen
class Addresses:
    """Where the daemon listens, as URLs; fixed once the listeners are open."""

    lan: str
    admin: str
    metrics: str | None
    certificate_sha256: str


@attrs.define
class StatusBoard:
    """Collects the status; `update` is None where software delivery is switched off."""

    config: HgwdConfig
    state: GatewayState
    spool: Spool
    forwarder: Forwarder
    upstream: StorageUpstream
    devices: LanDevices
    metrics: RelayMetrics
    clock: Clock
    addresses: Addresses
    update: UpdateService | None
    started_at_s: float

    async def collect(self) -> GatewayStatus:
        """Return the status document of now."""
        queue = await self._queue()
        line = self.upstream.line
        enrolled = self.state.enrolment is not None
        return GatewayStatus(
            serial=self.config.gateway.serial,
            model=self.config.gateway.model,
            pid=os.getpid(),
            rss_bytes=resident_memory_bytes(),
            started_at_s=self.started_at_s,
            lan=self.addresses.lan,
            admin=self.addresses.admin,
            metrics=self.addresses.metrics,
            certificate_sha256=self.addresses.certificate_sha256,
            enrolled=enrolled,
            line=LineDocument(state=line.state, reason=line.reason, since_s=line.since_s),
            queue=queue,
            devices=await self._devices(),
            update=self.update.status() if self.update is not None else {},
            conditions=sort_conditions(
                [
                    *find_conditions(
                        line=line, queue=queue, enrolled=enrolled, spool_failure=self.spool.failure
                    ),
                    *self._update_conditions(),
                ]
            ),
        )

    async def refresh_metrics(self) -> None:
        """Bring the gauges up to date before they are read."""
        totals = await self.spool.totals()
        self.metrics.refresh(totals, self.forwarder.stats, self.upstream.line, self.clock.now_s())

    async def _queue(self) -> QueueStatus:
        totals = await self.spool.totals()
        stats = self.forwarder.stats
        oldest_at_s = totals.oldest_spooled_at_s
        return QueueStatus(
            spooled_packs=totals.spooled_packs,
            spooled_bytes=totals.spooled_bytes,
            rejected_packs=totals.rejected_packs,
            rejected_bytes=totals.rejected_bytes,
            lost_packs=totals.lost_packs,
            limit_bytes=self.spool.limits.bytes_max,
            oldest_age_s=max(0.0, self.clock.now_s() - oldest_at_s) if oldest_at_s is not None else None,
            forwarded_packs=stats.forwarded_packs,
            forwarded_bytes=stats.forwarded_bytes,
            last_stored_at_s=stats.last_stored_at_s,
            last_problem=stats.last_problem,
            held={session: held.error.code for session, held in self.forwarder.held.items()},
        )

    def _update_conditions(self) -> list[Condition]:
        if self.update is None:
            return []
        return [
            Condition(
                code=found.code,
                severity="critical" if found.severity == "error" else "warning",
                ja=f"ソフトウェア配信：{found.code}",
                en=found.text,
            )
            for found in self.update.conditions()
        ]

    async def _devices(self) -> list[DeviceStatus]:
        return [
            DeviceStatus(
                device=device.device,
                name=device.name,
                paired_at_s=device.paired_at_s,
                revoked_at_s=device.revoked_at_s,
                last_stored_at_s=device.last_stored_at_s,
                last_durable_at_s=device.last_durable_at_s,
            )
            for device in await self.devices.list_all()
        ]
