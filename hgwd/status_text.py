"""`hgwd status` for people. Pure: the status document in, lines out."""

from __future__ import annotations

import datetime as dt

from hgwd.core.status import DeviceStatus, GatewayStatus
from wire.units import format_bytes

_JST = dt.timezone(dt.timedelta(hours=9), "JST")


def status_text(status: GatewayStatus) -> str:
    """Return the status in a few lines, what needs attention first."""
    queue = status.queue
    reason = f" ({status.line.reason})" if status.line.reason else ""
    age = f", oldest {queue.oldest_age_s:.0f} s" if queue.oldest_age_s is not None else ""
    enrolled = "enrolled" if status.enrolled else "not enrolled"
    here = f"{queue.spooled_packs} packs, {format_bytes(queue.spooled_bytes)} of {format_bytes(queue.limit_bytes)}"
    there = f"{queue.forwarded_packs} packs, {format_bytes(queue.forwarded_bytes)}"
    lines = [
        *(f"! {found.severity}: {found.code}: {found.en}" for found in status.conditions),
        f"gateway   {status.model} {status.serial}, {enrolled}, memory {format_bytes(status.rss_bytes)}",
        f"line      {status.line.state}{reason}",
        f"queue     only here: {here}{age}; rejected: {queue.rejected_packs}; lost: {queue.lost_packs}",
        f"stored    since the start: {there}",
        f"lan       {status.lan}  certificate {status.certificate_sha256}",
        f"admin     {status.admin}",
        *(_device_line(device) for device in status.devices),
        *_software_lines(status.update),
    ]
    return "\n".join(lines)


def _device_line(device: DeviceStatus) -> str:
    state = "revoked" if device.revoked_at_s is not None else "paired"
    return (
        f"nas       {device.name} ({device.device}), {state}; last stored {_time(device.last_stored_at_s)}, "
        f"last backed up {_time(device.last_durable_at_s)}"
    )


def _software_lines(update: dict[str, object]) -> list[str]:
    listed = update.get("software")
    items = listed if isinstance(listed, list) else []
    return [
        f"software  {item.get('software')} {item.get('version')} {item.get('state')} {item.get('fault') or ''}".rstrip()
        for item in items
        if isinstance(item, dict)
    ]


def _time(unix_s: int | None) -> str:
    return (
        dt.datetime.fromtimestamp(unix_s, _JST).strftime("%Y-%m-%d %H:%M JST")
        if unix_s is not None
        else "never"
    )
