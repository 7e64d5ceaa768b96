"""Gateways in Flets Joint: enrolment, reports, trusted time (protocols.md §4).

Rules
- Who a gateway is, `carrier.lines` decides: the line of the socket's peer, the serial in its contract, the proof.
- A report counts once: its counter must rise. It changes states of targets, never what is charged.
- Without a valid device signature there is one answer for every cause.
"""

from __future__ import annotations

import attrs
import msgspec
import sqlalchemy as sa

from carrier.engines.sql.database import Database
from carrier.lines.domain import Line
from carrier.lines.outcomes import EnrolmentRefused, GatewayEnrolled
from carrier.lines.ports import GatewayClaim
from carrier.lines.services import LineRegistry
from deliver.engines.schema import joint_gateway, joint_installed, joint_report, joint_target
from deliver.services.director_documents import DirectorDocuments, want_new_document
from wire.director import SoftwareName
from wire.errors import FormatError
from wire.joint import GatewayReport, SignedTime, SoftwareReport
from wire.signing import Context, SigningKey, sign_blob

REPORTS_KEPT_MAX = 200
"""Signed reports kept per gateway, newest first."""


@attrs.frozen
class ReportStored:
    """The report counts."""


@attrs.frozen
class ReportRefused:
    """The report changes nothing; `code` is for a caller whose signature was valid."""

    code: str
    message: str


@attrs.frozen
class GatewayService:
    """Enrolment and reports. Synchronous; in a server run it in a worker thread."""

    database: Database
    registry: LineRegistry
    documents: DirectorDocuments

    def enrol(self, line: Line, claim: GatewayClaim, *, now_s: int) -> GatewayEnrolled | EnrolmentRefused:
        """Bind a gateway key to its serial and give the gateway its director document. Idempotent."""
        outcome = self.registry.enrol_gateway(line, claim)
        if isinstance(outcome, GatewayEnrolled):
            for path in self._remember(outcome):
                self.documents.retire(path)
            self.documents.publish_pending(now_s=now_s)
        return outcome

    def report(
        self, key: bytes, line: Line, report: GatewayReport, statement: bytes, *, now_s: int
    ) -> ReportStored | ReportRefused:
        """Store a report whose signature by `key` was verified."""
        enrolled = self.registry.find_gateway(key)
        if enrolled is None:
            return ReportRefused("gateway-ended", "no running contract binds this gateway key")
        if enrolled.customer_id != line.customer_id:
            return ReportRefused("line-not-contract", "the gateway is enrolled on another line")
        with self.database.write() as connection:
            where = joint_gateway.c.gateway == enrolled.gateway.text
            query = sa.select(joint_gateway.c.report_counter).where(where).with_for_update()
            last = connection.execute(query).scalar()
            if last is None or report.counter <= last:
                return ReportRefused(
                    "conflict", f"report counter: expected above {last}, got {report.counter}"
                )
            connection.execute(sa.update(joint_gateway).where(where).values(report_counter=report.counter))
            row = {"gateway": enrolled.gateway.text, "counter": report.counter}
            connection.execute(sa.insert(joint_report), {**row, "received_at": now_s, "statement": statement})
            old = sa.and_(
                joint_report.c.gateway == enrolled.gateway.text,
                joint_report.c.counter <= report.counter - REPORTS_KEPT_MAX,
            )
            connection.execute(sa.delete(joint_report).where(old))
            for entry in report.software:
                _store_state(connection, enrolled, entry, now_s)
        return ReportStored()

    def _remember(self, gateway: GatewayEnrolled) -> list[str]:
        """Keep a row for the gateway's document; return the paths of its earlier enrolments, now retired."""
        with self.database.write() as connection:
            table = joint_gateway.c
            known = connection.execute(
                sa.select(table.gateway).where(table.gateway == gateway.gateway.text)
            ).first()
            earlier = sa.and_(
                table.serial == gateway.serial.text,
                table.gateway != gateway.gateway.text,
                table.customer != "",
            )
            paths = [path for (path,) in connection.execute(sa.select(table.director_path).where(earlier))]
            connection.execute(sa.update(joint_gateway).where(earlier).values(customer=""))
            mine = table.gateway == gateway.gateway.text
            connection.execute(sa.update(joint_gateway).where(mine).values(running=True))
            if known is None:
                connection.execute(sa.insert(joint_gateway), _gateway_row(gateway))
                want_new_document(connection, gateway.customer_id.text)
        return paths


def answer_time(key: SigningKey, nonce: bytes, *, now_s: float) -> bytes:
    """Return the signed time for a nonce of 32 bytes."""
    payload = SignedTime(v=1, nonce=nonce.hex(), time=int(now_s))
    return sign_blob(key, Context.TIME, msgspec.json.encode(payload))


def _gateway_row(gateway: GatewayEnrolled) -> dict[str, object]:
    return {
        "gateway": gateway.gateway.text,
        "customer": gateway.customer_id.text,
        "serial": gateway.serial.text,
        "model": gateway.model,
        "maker": gateway.maker,
        "director_path": gateway.director_path.text,
        "running": True,
        "wanted_version": 0,
        "published_version": 0,
        "expires_at": 0,
        "report_counter": -1,
    }


def _store_state(
    connection: sa.Connection, gateway: GatewayEnrolled, entry: SoftwareReport, now_s: int
) -> None:
    try:
        name = SoftwareName.parse(entry.software)
    except FormatError:
        return  # a report is the gateway's word about itself: an odd name concerns no target of ours
    key = {"gateway": gateway.gateway.text, "software": name.text}
    values = {
        "version": entry.version,
        "release": entry.release,
        "state": entry.state,
        "fault": entry.fault,
        "reported_at": now_s,
    }
    table = joint_installed.c
    where = sa.and_(table.gateway == key["gateway"], table.software == name.text)
    if not connection.execute(sa.update(joint_installed).where(where).values(values)).rowcount:
        connection.execute(sa.insert(joint_installed), {**key, **values})
    _move_target(connection, gateway.customer_id.text, name, entry, now_s)


def _move_target(
    connection: sa.Connection, customer: str, name: SoftwareName, entry: SoftwareReport, now_s: int
) -> None:
    """Move the line's target: delivering → active or failed, ending → ended (JNT-31)."""
    table = joint_target.c
    mine = sa.and_(
        table.operator == name.operator.text, table.software == name.software.text, table.customer == customer
    )
    target = connection.execute(sa.select(table.state, table.version).where(mine).with_for_update()).first()
    if target is None:
        return
    state = _next_state(target.state, target.version, entry)
    if state != target.state:
        connection.execute(sa.update(joint_target).where(mine).values(state=state, changed_at=now_s))


def _next_state(state: str, version: str, entry: SoftwareReport) -> str:
    if state == "ending":
        return "ended" if entry.state == "Uninstalled" else state
    if state not in {"delivering", "active", "failed"} or entry.version != version:
        return "failed" if state == "delivering" and entry.fault else state
    if entry.fault:
        return "failed"
    return "active" if entry.state == "Active" else state
