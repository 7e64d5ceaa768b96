"""What the gateway says about itself: coded conditions and one status document (X-34, style §11). Pure.

A condition has a stable code, a severity and two texts, Japanese first. Nothing secret and no file name is in here.
"""

from __future__ import annotations

from typing import Final, Literal

import attrs
import msgspec

Severity = Literal["info", "warning", "critical"]
OLDEST_WARNING_S: Final = 24 * 3600


@attrs.frozen
class LineStatus:
    """What the service last said about this line. `since_s`: unix time of the change; `reason`: code, or None."""

    state: Literal["unknown", "up", "down", "refused"] = "unknown"
    reason: str | None = None
    since_s: float = 0.0


LINE_REFUSALS: Final = frozenset({"line-unknown", "line-not-contract", "gateway-ended"})


def advance_line(line: LineStatus, *, code: str | None, reached: bool, now_s: float) -> LineStatus:
    """Return the line's status after an answer (`reached`, with the error `code` if any) or a failed attempt.

    A failed attempt keeps nothing of an older refusal: what cannot be reached is "down".
    """
    answered: Literal["up", "refused"] = "refused" if code in LINE_REFUSALS else "up"
    state: Literal["up", "down", "refused"] = answered if reached else "down"
    reason = code if state != "up" else None
    if (state, reason) == (line.state, line.reason):
        return line
    return LineStatus(state, reason, now_s)


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """Something a person should know; `code` is stable."""

    code: str
    severity: Severity
    ja: str
    en: str


class QueueStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The spool. Sizes in bytes, ages in seconds."""

    spooled_packs: int
    spooled_bytes: int
    rejected_packs: int
    rejected_bytes: int
    lost_packs: int
    limit_bytes: int
    oldest_age_s: float | None
    forwarded_packs: int
    forwarded_bytes: int
    last_stored_at_s: float | None
    last_problem: str | None
    held: dict[str, str]


class DeviceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A paired NAS. Times are unix seconds."""

    device: str
    name: str
    paired_at_s: int
    revoked_at_s: int | None
    last_stored_at_s: int | None
    last_durable_at_s: int | None


class LineDocument(msgspec.Struct, frozen=True, kw_only=True):
    """State of line authentication and its reason."""

    state: str
    reason: str | None
    since_s: float


class GatewayStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `hgwd status --json`, version 1. `update` is the update service's own document."""

    v: int = 1
    serial: str
    model: str
    pid: int
    rss_bytes: int
    started_at_s: float
    lan: str
    admin: str
    metrics: str | None
    certificate_sha256: str
    enrolled: bool
    line: LineDocument
    queue: QueueStatus
    devices: list[DeviceStatus]
    update: dict[str, object]
    conditions: list[Condition]


_LINE_TEXT: Final = {
    "line-unknown": ("この回線はまだ登録されていません", "the carrier does not know this line yet"),
    "line-not-contract": (
        "この回線は保管サービスの契約の回線ではありません",
        "this line does not belong to the storage contract",
    ),
    "gateway-ended": ("このゲートウェイの契約は終了しています", "the contract of this gateway has ended"),
}


def find_conditions(
    *, line: LineStatus, queue: QueueStatus, enrolled: bool, spool_failure: str | None
) -> list[Condition]:
    """Return what is not as it should be, worst first."""
    found = [*_spool_conditions(queue, spool_failure), *_line_conditions(line)]
    if not enrolled:
        found.append(
            Condition(
                code="not-enrolled",
                severity="info",
                ja="ソフトウェア配信の登録がまだ済んでいません",
                en="not enrolled for software delivery yet",
            )
        )
    return sort_conditions(found)


def sort_conditions(found: list[Condition]) -> list[Condition]:
    """Return them worst first, otherwise in their order."""
    order = ("critical", "warning", "info")
    return sorted(found, key=lambda condition: order.index(condition.severity))


def _spool_conditions(queue: QueueStatus, failure: str | None) -> list[Condition]:
    found = []
    if failure is not None:
        found.append(
            Condition(
                code="spool-failed",
                severity="critical",
                ja=f"一時保管領域が故障しました。再起動まで新しいデータを受け付けません（{failure}）",
                en=f"the spool's flash failed; nothing is accepted until the next start ({failure})",
            )
        )
    if queue.lost_packs:
        found.append(
            Condition(
                code="spool-lost",
                severity="critical",
                ja=f"受け付けたデータ{queue.lost_packs}個が失われました。NASが再送します",
                en=f"{queue.lost_packs} acknowledged packs are gone from the flash; the NAS sends them again",
            )
        )
    if queue.rejected_packs:
        found.append(
            Condition(
                code="packs-rejected",
                severity="warning",
                ja=f"保管サービスがデータ{queue.rejected_packs}個を受け取りませんでした",
                en=f"the service refused {queue.rejected_packs} packs for good",
            )
        )
    found += [
        Condition(
            code=f"held-{reason}",
            severity="warning",
            ja=f"保管サービスが受け取りを保留しています（{reason}）",
            en=f"the service does not take packs for now ({reason})",
        )
        for reason in sorted(set(queue.held.values()))
    ]
    if queue.oldest_age_s is not None and queue.oldest_age_s > OLDEST_WARNING_S:
        found.append(
            Condition(
                code="queue-old",
                severity="warning",
                ja="1日以上、保管サービスに送れていないデータがあります",
                en="some data has waited here for more than a day",
            )
        )
    return found


def _line_conditions(line: LineStatus) -> list[Condition]:
    if line.state == "down":
        return [
            Condition(
                code="line-down",
                severity="warning",
                ja="保管サービスに接続できません。データはここで安全に待っています",
                en="the service cannot be reached; data waits here safely",
            )
        ]
    if line.state == "refused":
        ja, en = _LINE_TEXT[line.reason or "line-unknown"]
        return [Condition(code=line.reason or "line-unknown", severity="warning", ja=ja, en=en)]
    return []
