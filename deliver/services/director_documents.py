"""One signed director document per gateway, rebuilt on events only (design §5.2).

Rules
- Whoever changes what a gateway should run calls `want_new_document` in the same transaction; `publish_pending` then
  builds, signs and replaces the file. A crash in between leaves the old, still valid document, and the next call
  (at start, every minute, after every event) does the rest: `wanted_version` > `published_version` says so.
- The version of a document never falls. Near expiry a gateway gets a new document of the same content.
- Hashes and lengths come from the accepted, operator-signed metadata; the director invents nothing.
- The line's customer ID is not in the document.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import attrs
import sqlalchemy as sa

from carrier.engines.sql.database import Database
from deliver.domain.eligibility import VariantFacts, variant_for
from deliver.engines.schema import joint_gateway, joint_installed, joint_target, joint_variant
from deliver.signing.director import DIRECTOR_LIFE_S, make_document
from deliver.signing.tuf import TargetFile
from runtime.files import make_dirs, remove_durably, write_atomic
from wire.director import DirectorBody, DirectorSoftware, parse_target_custom
from wire.signing import SigningKey

BATCH_MAX: Final = 500
"""Documents per transaction; 10 M gateways at 3 days' life need 39 a second, one core signs thousands."""

Action = Literal["install", "update"]
WANTED_STATES: Final = ("delivering", "active", "failed")


@attrs.frozen
class DirectorDocuments:
    """Builds and publishes documents below `directory`."""

    database: Database
    directory: Path
    key: SigningKey
    poll_s: int

    def publish_pending(self, *, now_s: float) -> int:
        """Publish every document that is wanted or in the second half of its life; returns how many."""
        published = 0
        while rows := self._pending(now_s):
            for row in rows:
                self._publish(row["gateway"], now_s)
            published += len(rows)
        return published

    def retire(self, director_path: str) -> None:
        """Remove the document of a gateway that enrolled anew; its path is never used again."""
        remove_durably(self.directory / director_path / "director.json")

    def _pending(self, now_s: float) -> list[sa.RowMapping]:
        table = joint_gateway.c
        due = sa.or_(
            table.wanted_version > table.published_version, table.expires_at < now_s + DIRECTOR_LIFE_S / 2
        )
        query = (
            sa.select(table.gateway).where(due, table.customer != "").order_by(table.gateway).limit(BATCH_MAX)
        )
        with self.database.read() as connection:
            return list(connection.execute(query).mappings())

    def _publish(self, gateway: str, now_s: float) -> None:
        """Write one document. The row is locked, so that two programs never give one version to two documents."""
        where = joint_gateway.c.gateway == gateway
        with self.database.write() as connection:
            row = connection.execute(sa.select(joint_gateway).where(where).with_for_update()).mappings().one()
            version = max(row["wanted_version"], row["published_version"])
            if version == row["published_version"]:
                version += 1
            body, targets = self._build(connection, row)
            document = make_document(self.key, body, targets, version=version, now_s=now_s)
            folder = self.directory / row["director_path"]
            make_dirs(folder)
            write_atomic(folder / "director.json", document)
            connection.execute(
                sa.update(joint_gateway)
                .where(where)
                .values(
                    wanted_version=version, published_version=version, expires_at=int(now_s) + DIRECTOR_LIFE_S
                )
            )

    def _build(
        self, connection: sa.Connection, gateway: sa.RowMapping
    ) -> tuple[DirectorBody, list[TargetFile]]:
        entries: list[DirectorSoftware] = []
        targets: list[TargetFile] = []
        query = sa.select(joint_target).where(joint_target.c.customer == gateway["customer"])
        for target in connection.execute(
            query.order_by(joint_target.c.operator, joint_target.c.software)
        ).mappings():
            name = f"{target['operator']}/{target['software']}"
            if target["state"] not in WANTED_STATES or not gateway["running"]:
                if target["state"] == "ending" or _installed(connection, gateway["gateway"], name):
                    entries.append(DirectorSoftware(software=name, action="remove"))
                continue
            variant = self._variant(connection, target, gateway)
            if variant is not None:
                action: Action = "update" if _installed(connection, gateway["gateway"], name) else "install"
                entries.append(DirectorSoftware(software=name, action=action, target=variant.path))
                targets.append(variant)
        body = DirectorBody(
            gateway=gateway["gateway"], serial=gateway["serial"], poll_s=self.poll_s, software=tuple(entries)
        )
        return body, targets

    def _variant(
        self, connection: sa.Connection, target: sa.RowMapping, gateway: sa.RowMapping
    ) -> TargetFile | None:
        variants = read_variants(connection, target["operator"], target["software"], target["version"])
        found = variant_for(gateway["model"], gateway["maker"], [facts for facts, _ in variants])
        if found is None:
            return None
        row = next(row for facts, row in variants if facts == found)
        return TargetFile(
            length=row["stored_bytes"], hashes={"sha256": row["sha256"]}, path=row["target_path"]
        )


def read_variants(
    connection: sa.Connection, operator: str, software: str, version: str
) -> list[tuple[VariantFacts, sa.RowMapping]]:
    """Return the variants of a version, with their rows."""
    table = joint_variant.c
    where = sa.and_(table.operator == operator, table.software == software, table.version == version)
    rows = connection.execute(sa.select(joint_variant).where(where).order_by(table.target_path)).mappings()
    return [(VariantFacts(row["target_path"], parse_target_custom(row["custom"])), row) for row in rows]


def want_new_document(connection: sa.Connection, customer: str) -> None:
    """Say that every gateway of a line needs a new document; part of the caller's transaction."""
    connection.execute(
        sa.update(joint_gateway)
        .where(joint_gateway.c.customer == customer)
        .values(wanted_version=joint_gateway.c.wanted_version + 1)
    )


def _installed(connection: sa.Connection, gateway: str, software: str) -> bool:
    where: Any = sa.and_(joint_installed.c.gateway == gateway, joint_installed.c.software == software)
    state = connection.execute(sa.select(joint_installed.c.state).where(where)).scalar()
    return state not in {None, "Uninstalled"}
