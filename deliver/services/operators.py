"""Service operators: who they are, and the offline ceremony that gives their keys power (design §5.1).

Rules
- Adding an operator records its API key, its signing keys and its threshold; none of them can publish anything yet.
- The ceremony re-signs each shard that has a new operator, with the offline shard key; only then is the operator
  delegated. It runs where the offline keys are, never in the serving program.
- Keys of a delegated operator are not changed here.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import sqlalchemy as sa

from carrier.engines.sql.database import Database
from deliver.domain.pricing import Refused
from deliver.engines.schema import joint_operator, joint_role
from deliver.signing.image_repository import ImageKeys, ImageRepository, OperatorKeys, make_shard
from deliver.signing.tuf import encode
from wire.director import shard_of, shard_role
from wire.ids import OperatorId
from wire.signing import SigningKey

KEYS_PER_OPERATOR_MAX = 8


@attrs.frozen
class Operator:
    """A registered operator; `delegated` once a ceremony has named its keys."""

    operator: OperatorId
    api_key: bytes
    keys: OperatorKeys
    delegated: bool


@attrs.frozen
class ShardSigned:
    """A shard now delegates to these operators."""

    shard: str
    version: int
    operators: tuple[OperatorId, ...]


def add_operator(
    database: Database,
    operator: OperatorId,
    api_key: bytes,
    public_keys: Sequence[bytes],
    threshold: int,
    now_s: int,
) -> Operator | Refused:
    """Record an operator; the same call again answers the same, another one for the ID is refused."""
    distinct = tuple(sorted(set(public_keys)))
    if len(distinct) != len(public_keys) or not 1 <= len(distinct) <= KEYS_PER_OPERATOR_MAX:
        return Refused("bad-keys", "JNT-50", f"expected 1 to {KEYS_PER_OPERATOR_MAX} different keys")
    if not 1 <= threshold <= len(distinct):
        return Refused("bad-keys", "JNT-50", f"threshold: expected 1 to {len(distinct)}, got {threshold}")
    if api_key in distinct:
        return Refused("bad-keys", "JNT-50", "the API key must not be one of the signing keys")
    values = {
        "operator": operator.text,
        "api_key": api_key.hex(),
        "public_keys": [key.hex() for key in distinct],
        "threshold": threshold,
        "delegated": False,
        "added_at": now_s,
    }
    with database.write() as connection:
        before = find_operator(connection, operator)
        if before is None:
            connection.execute(sa.insert(joint_operator), values)
            return Operator(operator, api_key, OperatorKeys(operator, distinct, threshold), delegated=False)
        if (before.api_key, before.keys) != (api_key, OperatorKeys(operator, distinct, threshold)):
            return Refused("conflict", "JNT-50", f"operator {operator} exists with other keys")
        return before


def find_operator(connection: sa.Connection, operator: OperatorId) -> Operator | None:
    """Return an operator."""
    row = connection.execute(
        sa.select(joint_operator).where(joint_operator.c.operator == operator.text)
    ).first()
    return None if row is None else _operator(row)


def find_by_api_key(connection: sa.Connection, api_key: bytes) -> Operator | None:
    """Return the operator whose API key this is."""
    row = connection.execute(
        sa.select(joint_operator).where(joint_operator.c.api_key == api_key.hex())
    ).first()
    return None if row is None else _operator(row)


def read_roles(connection: sa.Connection) -> dict[str, int]:
    """Return the version of every role that clients are meant to see."""
    rows = connection.execute(sa.select(joint_role.c.role, joint_role.c.version)).all()
    return {str(row[0]): int(row[1]) for row in rows}


def set_role(connection: sa.Connection, role: str, version: int) -> None:
    """Say that clients are meant to see this version of a role."""
    changed = connection.execute(
        sa.update(joint_role).where(joint_role.c.role == role).values(version=version)
    )
    if not changed.rowcount:
        connection.execute(sa.insert(joint_role), {"role": role, "version": version})


def sign_shards(
    database: Database, repository: ImageRepository, shard_key: SigningKey, keys: ImageKeys, *, now_s: float
) -> tuple[ShardSigned, ...]:
    """Do the ceremony: sign every shard with an operator not yet delegated, then publish.

    Crash order: shard files first, then one transaction, then the snapshot; run it again after a crash.
    """
    with database.write() as connection:
        rows = connection.execute(sa.select(joint_operator)).all()
        operators = [_operator(row) for row in rows]
        waiting = {shard_of(item.operator) for item in operators if not item.delegated}
        roles = read_roles(connection)
        signed = []
        for shard in sorted(waiting):
            members = [item for item in operators if shard_of(item.operator) == shard]
            version = roles[shard_role(shard)] + 1
            metadata = make_shard(shard_key, [item.keys for item in members], version=version, now_s=now_s)
            repository.add_metadata(shard_role(shard), version, encode(metadata))
            set_role(connection, shard_role(shard), version)
            signed.append(ShardSigned(shard, version, tuple(item.operator for item in members)))
        connection.execute(sa.update(joint_operator).values(delegated=True))
        wanted = read_roles(connection)
    repository.publish(wanted, keys, now_s=now_s)
    return tuple(signed)


def _operator(row: sa.Row[tuple[object, ...]]) -> Operator:
    data = row._mapping  # noqa: SLF001 - SQLAlchemy's public name for it
    operator = OperatorId(data["operator"])
    public_keys = tuple(bytes.fromhex(text) for text in data["public_keys"])
    keys = OperatorKeys(operator, public_keys, data["threshold"])
    return Operator(operator, bytes.fromhex(data["api_key"]), keys, bool(data["delegated"]))
