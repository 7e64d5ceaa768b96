"""Take a package from an operator: price it first, then accept it with the operator's own signature.

Rules
- The portal receives signatures, it never holds an operator key (design §5.1).
- A quote registers nothing. Acceptance checks everything again that could have changed.
- Commit order of `accept` (crash at any point leaves a consistent repository):
  1. the package moves to its consistent-snapshot name (nothing leads to it yet);
  2. the operator's metadata file is written (nothing leads to it yet);
  3. one transaction: role version, variant, software, ledger event, quote accepted;
  4. snapshot and timestamp: `timestamp.json`'s rename makes it visible. After a crash between 3 and 4 the next
     `publish` (at start and every minute) does it. Repeating `accept` at any point ends in the same state.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import sqlalchemy as sa

from carrier.engines.sql.database import Database
from carrier.ledger import events as ledger
from carrier.ledger.rules import jst_date
from carrier.ledger.store import record
from deliver.domain.pricing import KnownVariant, Measured, Refused, Registered, decide_quote
from deliver.domain.tables import QUOTE_LIFE_S
from deliver.engines.schema import joint_operator, joint_quote, joint_software, joint_variant
from deliver.services.operator_metadata import VerifiedTargets, verify_operator_metadata
from deliver.services.operators import Operator, read_roles, set_role
from deliver.signing.image_repository import ImageKeys, ImageRepository
from runtime.files import remove_durably
from wire.director import operator_role, to_plain
from wire.ids import RandomId
from wire.joint import OperatorSubmit, Quote
from wire.package import encode_manifest, parse_manifest


@attrs.frozen
class Accepted:
    """The package is registered and visible to gateways."""

    target_path: str
    role_version: int


@attrs.frozen
class SubmitService:
    """Quotes and acceptances. Synchronous; in a server run it in a worker thread."""

    database: Database
    repository: ImageRepository
    keys: ImageKeys
    staging_dir: Path

    def staged_path(self, quote: RandomId) -> Path:
        """Where the package of a quote waits for its acceptance."""
        return self.staging_dir / f"{quote}.hgwpkg"

    def make_quote(
        self, operator: Operator, order: OperatorSubmit, package: Measured, quote: RandomId, *, now_s: int
    ) -> Quote | Registered | Refused:
        """Price a package that lies fsynced at `staged_path(quote)`; it is removed again unless quoted."""
        with self.database.write() as connection:
            outcome = _check_order(operator, order, package) or decide_quote(
                package,
                _known_variants(connection, order),
                order.change,
                quote_id=quote.text,
                date=jst_date(now_s),
            )
            if isinstance(outcome, Quote):
                connection.execute(sa.insert(joint_quote), _quote_row(operator, package, outcome, now_s))
        if not isinstance(outcome, Quote):
            remove_durably(self.staged_path(quote))
        return outcome

    def accept(
        self, operator: Operator, quote: RandomId, metadata: bytes, *, now_s: int
    ) -> Accepted | Refused:
        """Register a quoted package with the operator's signed targets metadata, and publish it."""
        with self.database.write() as connection:
            outcome = self._accept(connection, operator, quote, metadata, now_s)
            wanted = read_roles(connection)
        if isinstance(outcome, Accepted):
            self.repository.publish(wanted, self.keys, now_s=now_s)
        return outcome

    def publish(self, *, now_s: float) -> int:
        """Make clients see what the database says; renews snapshot and timestamp. Returns the snapshot version."""
        with self.database.read() as connection:
            wanted = read_roles(connection)
        return self.repository.publish(wanted, self.keys, now_s=now_s)

    def drop_old_quotes(self, *, now_s: int) -> int:
        """Remove staged files of quotes that can no longer be accepted, and files without a quote."""
        with self.database.write() as connection:
            old = joint_quote.c.made_at < now_s - QUOTE_LIFE_S
            connection.execute(sa.delete(joint_quote).where(old, joint_quote.c.accepted_at.is_(None)))
            open_quotes = sa.select(joint_quote.c.quote).where(joint_quote.c.accepted_at.is_(None))
            kept = {f"{name}.hgwpkg" for (name,) in connection.execute(open_quotes)}
        stale = [path for path in self.staging_dir.iterdir() if path.name not in kept and _older(path, now_s)]
        for path in stale:
            remove_durably(path)
        return len(stale)

    def _accept(
        self, connection: sa.Connection, operator: Operator, quote: RandomId, metadata: bytes, now_s: int
    ) -> Accepted | Refused:
        lock = sa.select(joint_operator.c.operator).where(joint_operator.c.operator == operator.operator.text)
        connection.execute(lock.with_for_update())
        row = _find_quote(connection, operator, quote)
        if row is None or (row["accepted_at"] is None and row["made_at"] < now_s - QUOTE_LIFE_S):
            return Refused("not-found", "JNT-13", f"quote {quote}: expected one of yours, at most a day old")
        version = read_roles(connection).get(operator_role(operator.operator), 0)
        data = row["data"]
        if row["accepted_at"] is not None:
            return Accepted(data["target_path"], version)
        package = _measured(row)
        found = verify_operator_metadata(
            self.repository, connection, operator, metadata, package, last_version=version, now_s=now_s
        )
        if isinstance(found, Refused):
            return found
        again = self._price_again(connection, operator, package, row)
        if isinstance(again, Refused):
            return again
        self.repository.add_target(package.target_path, package.sha256, self.staged_path(quote))
        self.repository.add_metadata(operator_role(operator.operator), found.version, metadata)
        _write_rows(connection, operator, package, found, row, now_s)
        return Accepted(package.target_path, found.version)

    def _price_again(
        self, connection: sa.Connection, operator: Operator, package: Measured, row: sa.RowMapping
    ) -> Refused | None:
        """Refuse when another acceptance since the quote changed what this one would cost."""
        manifest = package.manifest
        order = OperatorSubmit(
            operator=operator.operator.text,
            software=manifest.software,
            version=manifest.version,
            change=row["change"],
            body_sha256=package.sha256,
        )
        known = _known_variants(connection, order)
        date = jst_date(row["made_at"])
        again = decide_quote(package, known, row["change"], quote_id=row["quote"], date=date)
        if isinstance(again, Refused):
            return again
        if isinstance(again, Registered) or again.stored_bytes != row["data"]["stored_bytes"]:
            return Refused(
                "conflict", "JNT-13", "another file of this software was accepted since: quote again"
            )
        return None


def _check_order(operator: Operator, order: OperatorSubmit, package: Measured) -> Refused | None:
    manifest = package.manifest
    if order.operator != operator.operator.text or manifest.operator != operator.operator.text:
        return Refused(
            "wrong-operator",
            "JNT-50",
            f"the package is {manifest.operator}'s, the order {operator.operator}'s",
        )
    if (order.software, order.version) != (manifest.software, manifest.version):
        message = f"the order names {order.software} {order.version}, the package {manifest.software} {manifest.version}"
        return Refused("wrong-package", "JNT-50", message)
    if order.body_sha256 != package.sha256:
        return Refused("bad-hash", "JNT-50", "the signed order names other bytes than were sent")
    if not operator.delegated:
        return Refused(
            "not-delegated", "JNT-50", f"operator {operator.operator} waits for the next signing ceremony"
        )
    return None


def _known_variants(connection: sa.Connection, order: OperatorSubmit) -> list[KnownVariant]:
    table = joint_variant.c
    query = sa.select(
        table.target_path, table.version, table.release, table.sha256, table.stored_bytes
    ).where(table.operator == order.operator, table.software == order.software)
    return [KnownVariant(*row) for row in connection.execute(query)]


def _quote_row(operator: Operator, package: Measured, quote: Quote, now_s: int) -> dict[str, Any]:
    data = {
        "target_path": quote.target_path,
        "stored_bytes": quote.stored_bytes,
        "file_bytes": package.stored_bytes,
        "footprint_bytes": quote.footprint_bytes,
    }
    return {
        "quote": quote.quote_id,
        "operator": operator.operator.text,
        "change": quote.change,
        "manifest": encode_manifest(package.manifest),
        "sha256": package.sha256,
        "data": data,
        "made_at": now_s,
        "accepted_at": None,
    }


def _find_quote(connection: sa.Connection, operator: Operator, quote: RandomId) -> sa.RowMapping | None:
    mine = joint_quote.c.operator == operator.operator.text
    return (
        connection.execute(sa.select(joint_quote).where(joint_quote.c.quote == quote.text, mine))
        .mappings()
        .first()
    )


def _measured(row: sa.RowMapping) -> Measured:
    data = row["data"]
    return Measured(
        parse_manifest(row["manifest"]), row["sha256"], data["file_bytes"], data["footprint_bytes"]
    )


def _write_rows(
    connection: sa.Connection,
    operator: Operator,
    package: Measured,
    found: VerifiedTargets,
    row: sa.RowMapping,
    now_s: int,
) -> None:
    manifest = package.manifest
    name = {"operator": manifest.operator, "software": manifest.software}
    if row["change"] == "new":
        texts = {"description": manifest.description, "price_text": manifest.price_text}
        connection.execute(sa.insert(joint_software), {**name, **texts, "registered_at": now_s})
    connection.execute(
        sa.insert(joint_variant),
        {
            **name,
            "target_path": package.target_path,
            "version": manifest.version,
            "release": manifest.release,
            "sha256": package.sha256,
            "stored_bytes": package.stored_bytes,
            "custom": to_plain(found.custom),
            "accepted_at": now_s,
        },
    )
    set_role(connection, operator_role(operator.operator), found.version)
    record(connection, _event(operator, package, row, now_s))
    connection.execute(
        sa.update(joint_quote).where(joint_quote.c.quote == row["quote"]).values(accepted_at=now_s)
    )


def _event(operator: Operator, package: Measured, row: sa.RowMapping, now_s: int) -> ledger.Event:
    kind = ledger.SoftwareRegistered if row["change"] == "new" else ledger.SoftwareChanged
    return kind(
        at_s=now_s,
        payer=operator.operator.text,
        token=f"jnt-quote/{row['quote']}",
        software=f"{package.manifest.operator}/{package.manifest.software}",
        stored_bytes=row["data"]["stored_bytes"],
        work=row["quote"],
    )


def _older(path: Path, now_s: int) -> bool:
    try:
        return path.stat().st_mtime < now_s - QUOTE_LIFE_S
    except FileNotFoundError:
        return False
