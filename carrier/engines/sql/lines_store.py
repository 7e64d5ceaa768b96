"""`LineStore` in SQL: lines, prefixes, access keys. Gateways are in `gateways_store.py`.

Why overlap cannot race: every method that writes first raises the one row of `line_change`, so on PostgreSQL that
row lock, and on SQLite BEGIN IMMEDIATE, lets one writer after the other read, check and insert.
"""

from __future__ import annotations

import sqlalchemy as sa

from carrier.engines.sql import gateways_store
from carrier.engines.sql.database import Database, SqlRow
from carrier.engines.sql.schema import gateway_contract, gateway_enrolment, line, line_change, line_prefix
from carrier.lines import outcomes as out
from carrier.lines.addresses import Prefix
from carrier.lines.domain import FOREVER_S, GatewayRow, Line, LineMap, PrefixRow
from carrier.lines.tables import ACCESS_KEY_LOCK_S, ACCESS_KEY_TRIES_MAX, AccessType, Region
from wire.ids import CustomerId

_PREFIX_COLUMNS = (
    line_prefix.c.first,
    line_prefix.c.length,
    line_prefix.c.line_id,
    line_prefix.c.valid_from,
    line_prefix.c.valid_to,
)


class SqlLineStore(gateways_store.SqlGatewayStore):
    """See `carrier.lines.ports.LineStore`."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def read_change(self) -> int:
        """See LineStore."""
        with self.database.read() as connection:
            return int(connection.execute(sa.select(line_change.c.counter)).scalar_one())

    def read_map(self, now_s: int) -> LineMap:
        """See LineStore."""
        with self.database.read() as connection:
            change = connection.execute(sa.select(line_change.c.counter)).scalar_one()
            lines = [_line(row) for row in connection.execute(sa.select(line))]
            prefixes = connection.execute(sa.select(*_PREFIX_COLUMNS).where(line_prefix.c.valid_to > now_s))
            gateways = connection.execute(
                sa.select(
                    gateway_enrolment.c.key,
                    gateway_contract.c.line_id,
                    gateway_contract.c.valid_from,
                    gateway_contract.c.valid_to,
                )
                .join_from(gateway_enrolment, gateway_contract)
                .where(gateway_contract.c.valid_to > now_s)
            )
            return LineMap.build(
                change,
                lines,
                [_prefix_row(row) for row in prefixes],
                [GatewayRow(row.key, row.line_id, row.valid_from, row.valid_to) for row in gateways],
            )

    def add_line(
        self, customer_id: CustomerId, region: Region, access_type: AccessType, now_s: int
    ) -> Line | out.CustomerIdTaken:
        """See LineStore."""
        with self.database.write() as connection:
            raise_change(connection)
            taken = connection.execute(
                sa.select(line.c.line_id).where(line.c.customer_id == customer_id.text)
            )
            if taken.first() is not None:
                return out.CustomerIdTaken(customer_id)
            result = connection.execute(
                sa.insert(line).values(
                    customer_id=customer_id.text,
                    region=region.value,
                    access_type=access_type.value,
                    opened_at=now_s,
                    ended_at=FOREVER_S,
                )
            )
            key = result.inserted_primary_key
            assert key is not None  # noqa: S101 - one row was inserted: drivers always give its key
            return Line(key.line_id, customer_id, region, access_type)

    def find_line(self, customer_id: CustomerId) -> Line | None:
        """See LineStore."""
        with self.database.read() as connection:
            return find_line(connection, customer_id)

    def add_prefix(
        self, customer_id: CustomerId, prefix: Prefix, valid_from: int, valid_to: int, *, quarantine_s: int
    ) -> out.PrefixAdded | out.PrefixOverlaps | out.PrefixQuarantined | out.CustomerUnknown:
        """See LineStore."""
        with self.database.write() as connection:
            raise_change(connection)
            owner = find_line(connection, customer_id)
            if owner is None:
                return out.CustomerUnknown(customer_id)
            refusal = _check_free(connection, owner, prefix, (valid_from, valid_to), quarantine_s)
            if refusal is not None:
                connection.rollback()
                return refusal
            connection.execute(
                sa.insert(line_prefix).values(
                    line_id=owner.line_id,
                    first=_half(prefix.key),
                    last=_half(prefix.last),
                    length=prefix.length,
                    valid_from=valid_from,
                    valid_to=valid_to,
                )
            )
            return out.PrefixAdded(prefix, valid_from)

    def end_prefix(
        self, customer_id: CustomerId, prefix: Prefix, at: int
    ) -> out.PrefixEnded | out.PrefixUnknown:
        """See LineStore."""
        with self.database.write() as connection:
            raise_change(connection)
            owner = find_line(connection, customer_id)
            rows = sa.and_(
                line_prefix.c.line_id == (owner.line_id if owner else -1),
                line_prefix.c.first == _half(prefix.key),
                line_prefix.c.length == prefix.length,
            )
            found = connection.execute(sa.select(line_prefix.c.prefix_id).where(rows)).first()
            if found is None:
                return out.PrefixUnknown(prefix)
            _end_prefixes(connection, rows, at)
            return out.PrefixEnded(prefix, at)

    def end_line(self, customer_id: CustomerId, at: int) -> out.LineEnded | out.CustomerUnknown:
        """See LineStore."""
        with self.database.write() as connection:
            raise_change(connection)
            owner = find_line(connection, customer_id)
            if owner is None:
                return out.CustomerUnknown(customer_id)
            prefixes = _end_prefixes(connection, line_prefix.c.line_id == owner.line_id, at)
            contracts = connection.execute(
                sa.update(gateway_contract)
                .where(gateway_contract.c.line_id == owner.line_id, gateway_contract.c.valid_to > at)
                .values(valid_to=at)
            ).rowcount
            connection.execute(sa.update(line).where(line.c.line_id == owner.line_id).values(ended_at=at))
            return out.LineEnded(customer_id, at, prefixes, contracts)

    def set_access_key(self, customer_id: CustomerId, key_hash: str) -> bool:
        """See LineStore."""
        with self.database.write() as connection:
            changed = connection.execute(
                sa.update(line)
                .where(line.c.customer_id == customer_id.text, line.c.ended_at == FOREVER_S)
                .values(access_key_hash=key_hash, access_key_tries=0, access_key_locked_until=0)
            )
            return changed.rowcount == 1

    def read_access_key(self, line_id: int) -> tuple[str, int, int] | None:
        """See LineStore."""
        columns = (line.c.access_key_hash, line.c.access_key_tries, line.c.access_key_locked_until)
        with self.database.read() as connection:
            row = connection.execute(sa.select(*columns).where(line.c.line_id == line_id)).first()
        return None if row is None or row[0] is None else (row[0], row[1], row[2])

    def count_access_key(self, line_id: int, *, ok: bool, now_s: int) -> None:
        """See LineStore."""
        tries = line.c.access_key_tries + 1
        values: dict[str, object] = {"access_key_tries": 0, "access_key_locked_until": 0}
        if not ok:
            full = tries >= ACCESS_KEY_TRIES_MAX
            values = {
                "access_key_tries": sa.case((full, 0), else_=tries),
                "access_key_locked_until": sa.case(
                    (full, now_s + ACCESS_KEY_LOCK_S), else_=line.c.access_key_locked_until
                ),
            }
        with self.database.write() as connection:
            connection.execute(sa.update(line).where(line.c.line_id == line_id).values(values))


def raise_change(connection: sa.Connection) -> None:
    """Raise the change counter: every map in every process is read again, and writers go one by one."""
    connection.execute(sa.update(line_change).values(counter=line_change.c.counter + 1))


def find_line(connection: sa.Connection, customer_id: CustomerId) -> Line | None:
    """Return the running line of a customer ID."""
    row = connection.execute(
        sa.select(line).where(line.c.customer_id == customer_id.text, line.c.ended_at == FOREVER_S)
    ).first()
    return None if row is None else _line(row)


def _check_free(
    connection: sa.Connection, owner: Line, prefix: Prefix, valid: tuple[int, int], quarantine_s: int
) -> out.PrefixOverlaps | out.PrefixQuarantined | None:
    """Compare with every row that overlaps in prefix; another customer's counts `quarantine_s` longer."""
    rows = connection.execute(
        sa.select(*_PREFIX_COLUMNS, line.c.customer_id)
        .join_from(line_prefix, line)
        .where(line_prefix.c.first <= _half(prefix.last), line_prefix.c.last >= _half(prefix.key))
    )
    valid_from, valid_to = valid
    free_at = 0
    for row in rows:
        pause_s = 0 if row.line_id == owner.line_id else quarantine_s
        if row.valid_from < valid_to and valid_from < row.valid_to:
            other = _prefix_row(row).prefix
            return out.PrefixOverlaps(prefix, other, CustomerId.parse(row.customer_id))
        if row.valid_from < valid_to + pause_s and valid_from < row.valid_to + pause_s:
            free_at = max(free_at, row.valid_to + pause_s)
    return out.PrefixQuarantined(prefix, free_at) if free_at else None


def _end_prefixes(connection: sa.Connection, rows: sa.ColumnElement[bool], at: int) -> int:
    """End the matching rows at `at`; one that has not begun goes, any other stays for its quarantine."""
    open_rows = sa.and_(rows, line_prefix.c.valid_to > at)
    gone = connection.execute(sa.delete(line_prefix).where(open_rows, line_prefix.c.valid_from > at)).rowcount
    ended = connection.execute(sa.update(line_prefix).where(open_rows).values(valid_to=at)).rowcount
    return gone + ended


def _half(value: int) -> bytes:
    return value.to_bytes(8, "big")


def _line(row: SqlRow) -> Line:
    return Line(
        row.line_id, CustomerId.parse(row.customer_id), Region(row.region), AccessType(row.access_type)
    )


def _prefix_row(row: SqlRow) -> PrefixRow:
    prefix = Prefix(int.from_bytes(row.first, "big"), row.length)
    return PrefixRow(prefix, row.line_id, row.valid_from, row.valid_to)
