"""`deliver admin gateway reports`: what each gateway said last about itself, and whether it saw an attack (JNT-50).

Rules: only what a gateway signed is shown; the stored statement is verified again, at the time it arrived.
"""

from __future__ import annotations

import argparse
import sys

import msgspec
import sqlalchemy as sa

from deliver.app import Program
from deliver.engines.schema import joint_gateway, joint_report
from runtime.errors import CorruptDataError
from wire.errors import WireError
from wire.joint import GatewayReport
from wire.statement import Audience, Kind, open_statement


def show_reports(program: Program, arguments: argparse.Namespace) -> int:
    """Show the newest report of every gateway, those with a sign of an attack first."""
    with program.database.read() as connection:
        rows = [_row(row) for row in connection.execute(_NEWEST).mappings()]
    rows.sort(key=lambda row: (row["attack"] is None, str(row["serial"])))
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(rows).decode() + "\n")
        return 0
    for row in rows:
        attack = f" attack {row['attack']}" if row["attack"] else ""
        sys.stdout.write(
            f"{row['serial']} at {row['received_at']} document {row['director_version']} down {row['bytes_down']} B{attack}\n"
        )
    return 0


def _row(row: sa.RowMapping) -> dict[str, object]:
    try:
        report = open_statement(
            row["statement"],
            kind=Kind.GATEWAY_REPORT,
            audience=Audience.JOINT,
            now_s=row["received_at"],
            body_type=GatewayReport,
        ).body
    except WireError as error:
        raise CorruptDataError(f"report {row['counter']} of gateway {row['gateway']}: {error}") from error
    known = {name: row[name] for name in ("gateway", "serial", "received_at", "counter")}
    plain: dict[str, object] = msgspec.to_builtins(report)
    return {**known, **plain}


_LAST = (
    sa.select(joint_report.c.gateway, sa.func.max(joint_report.c.counter).label("counter"))
    .group_by(joint_report.c.gateway)
    .subquery()
)
_NEWEST = (
    sa.select(joint_report, joint_gateway.c.serial)
    .join_from(joint_report, joint_gateway)
    .join(
        _LAST,
        sa.and_(joint_report.c.gateway == _LAST.c.gateway, joint_report.c.counter == _LAST.c.counter),
    )
)
