"""Tables of the carrier side: one metadata for SQLite and PostgreSQL.

Rules
- Times are unix seconds (BigInteger), sizes bytes, hashes and keys raw bytes, IDs their text form.
- `FOREVER_S` instead of NULL marks an open end, so that intervals compare without special cases.
- Secrets are hashed (tokens, codes, access keys), but for the gateways' factory secrets, which prove by HMAC.
- A change here needs a migration; `tests/carrier` compares both.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_Key = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


line_change = sa.Table(
    "line_change",
    metadata,
    sa.Column("one", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("counter", sa.BigInteger, nullable=False),
)

line = sa.Table(
    "line",
    metadata,
    sa.Column("line_id", _Key, primary_key=True),
    sa.Column("customer_id", sa.String(13), nullable=False, unique=True),
    sa.Column("region", sa.String(16), nullable=False),
    sa.Column("access_type", sa.String(32), nullable=False),
    sa.Column("opened_at", sa.BigInteger, nullable=False),
    sa.Column("ended_at", sa.BigInteger, nullable=False),
    sa.Column("access_key_hash", sa.String(160)),
    sa.Column("access_key_tries", sa.Integer, nullable=False, server_default="0"),
    sa.Column("access_key_locked_until", sa.BigInteger, nullable=False, server_default="0"),
)

line_prefix = sa.Table(
    "line_prefix",
    metadata,
    sa.Column("prefix_id", _Key, primary_key=True),
    sa.Column("line_id", sa.ForeignKey("line.line_id"), nullable=False, index=True),
    sa.Column("first", sa.LargeBinary(8), nullable=False),
    sa.Column("last", sa.LargeBinary(8), nullable=False),
    sa.Column("length", sa.Integer, nullable=False),
    sa.Column("valid_from", sa.BigInteger, nullable=False),
    sa.Column("valid_to", sa.BigInteger, nullable=False),
    sa.CheckConstraint("valid_from <= valid_to", name="ck_line_prefix_interval"),
    sa.Index("ix_line_prefix_range", "first", "last"),
)

gateway_contract = sa.Table(
    "gateway_contract",
    metadata,
    sa.Column("gateway_contract_id", _Key, primary_key=True),
    sa.Column("line_id", sa.ForeignKey("line.line_id"), nullable=False, index=True),
    sa.Column("serial", sa.String(24), nullable=False, index=True),
    sa.Column("model", sa.String(32), nullable=False),
    sa.Column("maker", sa.String(8), nullable=False),
    sa.Column("secret", sa.LargeBinary(64), nullable=False),
    sa.Column("valid_from", sa.BigInteger, nullable=False),
    sa.Column("valid_to", sa.BigInteger, nullable=False),
)

gateway_enrolment = sa.Table(
    "gateway_enrolment",
    metadata,
    sa.Column("gateway", sa.String(32), primary_key=True),
    sa.Column(
        "gateway_contract_id",
        sa.ForeignKey("gateway_contract.gateway_contract_id"),
        nullable=False,
        unique=True,
    ),
    sa.Column("key", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column("director_path", sa.String(32), nullable=False, unique=True),
    sa.Column("enrolled_at", sa.BigInteger, nullable=False),
)

gateway_alarm = sa.Table(
    "gateway_alarm",
    metadata,
    sa.Column("line_id", sa.ForeignKey("line.line_id"), primary_key=True),
    sa.Column("serial", sa.String(24), primary_key=True),
    sa.Column("kind", sa.String(32), primary_key=True),
    sa.Column("count", sa.BigInteger, nullable=False),
    sa.Column("first_at", sa.BigInteger, nullable=False),
    sa.Column("last_at", sa.BigInteger, nullable=False),
    sa.Column("last_key", sa.LargeBinary(32), nullable=False),
)


storage_contract = sa.Table(
    "storage_contract",
    metadata,
    sa.Column("contract", sa.String(13), primary_key=True),
    sa.Column("plan", sa.String(16), nullable=False),
    sa.Column("opened_at", sa.BigInteger, nullable=False),
    sa.Column("ended_at", sa.BigInteger, nullable=False),
    sa.Column("box_key", sa.LargeBinary(32)),
    sa.Column("sign_key", sa.LargeBinary(32)),
    sa.Column("used_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.CheckConstraint("used_bytes >= 0", name="ck_storage_contract_used"),
)

storage_entitlement = sa.Table(
    "storage_entitlement",
    metadata,
    sa.Column("contract", sa.ForeignKey("storage_contract.contract"), primary_key=True),
    sa.Column("service", sa.String(32), primary_key=True),
    sa.Column("category", sa.String(32), primary_key=True),
    sa.Column("valid_from", sa.BigInteger, primary_key=True),
    sa.Column("valid_to", sa.BigInteger, nullable=False),
)

storage_line = sa.Table(
    "storage_line",
    metadata,
    sa.Column("contract", sa.ForeignKey("storage_contract.contract"), primary_key=True),
    sa.Column("line_id", sa.ForeignKey("line.line_id"), primary_key=True),
    sa.Column("valid_from", sa.BigInteger, primary_key=True),
    sa.Column("valid_to", sa.BigInteger, nullable=False),
)

enrolment_code = sa.Table(
    "enrolment_code",
    metadata,
    sa.Column("code_sha256", sa.LargeBinary(32), primary_key=True),
    sa.Column("contract", sa.ForeignKey("storage_contract.contract"), nullable=False, index=True),
    sa.Column("valid_to", sa.BigInteger, nullable=False),
    sa.Column("used_by", sa.LargeBinary(32)),
)

device = sa.Table(
    "device",
    metadata,
    sa.Column("device", sa.LargeBinary(32), primary_key=True),
    sa.Column("contract", sa.ForeignKey("storage_contract.contract"), nullable=False, index=True),
    sa.Column("cert", sa.LargeBinary, nullable=False),
    sa.Column("state", sa.String(8), nullable=False),
    sa.Column("enrolled_at", sa.BigInteger, nullable=False),
    sa.Column("changed_at", sa.BigInteger, nullable=False),
)

nonce = sa.Table(
    "nonce",
    metadata,
    sa.Column("signer", sa.LargeBinary(32), primary_key=True),
    sa.Column("nonce", sa.String(32), primary_key=True),
    sa.Column("drop_at", sa.BigInteger, nullable=False, index=True),
)

session = sa.Table(
    "session",
    metadata,
    sa.Column("session", sa.String(32), primary_key=True),
    sa.Column("token_sha256", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column("contract", sa.ForeignKey("storage_contract.contract"), nullable=False, index=True),
    sa.Column("device", sa.ForeignKey("device.device"), nullable=False, index=True),
    sa.Column("backup_set", sa.String(64), nullable=False),
    sa.Column("mode", sa.String(8), nullable=False),
    sa.Column("epoch", sa.String(64), nullable=False),
    sa.Column("header", sa.LargeBinary, nullable=False),
    sa.Column("gateway_key", sa.LargeBinary(32), nullable=False),
    sa.Column("opened_at", sa.BigInteger, nullable=False),
    sa.Column("lease_until", sa.BigInteger, nullable=False),
    sa.Column("closed_at", sa.BigInteger, nullable=False),
    sa.Column("reserved_bytes", sa.BigInteger, nullable=False),
    sa.CheckConstraint("reserved_bytes >= 0", name="ck_session_reserved"),
)

upload = sa.Table(
    "upload",
    metadata,
    sa.Column("incarnation", sa.String(32), primary_key=True),
    sa.Column("session", sa.ForeignKey("session.session"), nullable=False, index=True),
    sa.Column("contract", sa.ForeignKey("storage_contract.contract"), nullable=False, index=True),
    sa.Column("sha256", sa.LargeBinary(32), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("drop_at", sa.BigInteger, nullable=False),
)

pack = sa.Table(
    "pack",
    metadata,
    sa.Column("pack_id", _Key, primary_key=True),
    sa.Column("contract", sa.ForeignKey("storage_contract.contract"), nullable=False),
    sa.Column("device", sa.ForeignKey("device.device"), nullable=False),
    sa.Column("epoch", sa.String(64), nullable=False),
    sa.Column("sha256", sa.LargeBinary(32), nullable=False),
    sa.Column("incarnation", sa.String(32), nullable=False, unique=True),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("stored_at", sa.BigInteger, nullable=False),
    sa.Column("changed_at", sa.BigInteger, nullable=False),
    sa.Column("protected_until", sa.BigInteger, nullable=False, server_default="0"),
    sa.CheckConstraint("state IN ('live','condemned','deleting','gone')", name="ck_pack_state"),
    sa.Index("ix_pack_name", "contract", "sha256"),
    sa.Index("ix_pack_state", "state"),
    sa.Index(
        "uq_pack_usable",
        "device",
        "sha256",
        unique=True,
        sqlite_where=sa.text("state IN ('live','condemned')"),
        postgresql_where=sa.text("state IN ('live','condemned')"),
    ),
)

chunk = sa.Table(
    "chunk",
    metadata,
    sa.Column("pack_id", sa.ForeignKey("pack.pack_id"), primary_key=True),
    sa.Column("chunk_id", sa.LargeBinary(32), primary_key=True),
    sa.Column("offset_bytes", sa.BigInteger, nullable=False),
    sa.Column("length_bytes", sa.BigInteger, nullable=False),
    sa.Index("ix_chunk_id", "chunk_id"),
    sqlite_with_rowid=False,
)

session_pack = sa.Table(
    "session_pack",
    metadata,
    sa.Column("pack_id", sa.ForeignKey("pack.pack_id"), primary_key=True),
    sa.Column("session", sa.ForeignKey("session.session"), primary_key=True),
    sqlite_with_rowid=False,
)

generation = sa.Table(
    "generation",
    metadata,
    sa.Column("generation", sa.String(32), primary_key=True),
    sa.Column("contract", sa.ForeignKey("storage_contract.contract"), nullable=False),
    sa.Column("device", sa.ForeignKey("device.device"), nullable=False),
    sa.Column("backup_set", sa.String(64), nullable=False),
    sa.Column("epoch", sa.String(64), nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("session", sa.ForeignKey("session.session"), nullable=False),
    sa.Column("root_sha256", sa.LargeBinary(32), nullable=False),
    sa.Column("refs_sha256", sa.LargeBinary(32), nullable=False),
    sa.Column("root", sa.LargeBinary, nullable=False),
    sa.Column("receipt", sa.LargeBinary, nullable=False),
    sa.Column("stored_bytes", sa.BigInteger, nullable=False),
    sa.Column("received_at", sa.BigInteger, nullable=False),
    sa.Column("trashed_at", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(8), nullable=False),
    sa.CheckConstraint("state IN ('kept','trash','gone')", name="ck_generation_state"),
    sa.UniqueConstraint("device", "backup_set", "sequence"),
    sa.Index("ix_generation_set", "contract", "backup_set"),
)

generation_pack = sa.Table(
    "generation_pack",
    metadata,
    sa.Column("pack_id", sa.ForeignKey("pack.pack_id"), primary_key=True),
    sa.Column("generation", sa.ForeignKey("generation.generation"), primary_key=True),
    sa.Index("ix_generation_pack_generation", "generation"),
    sqlite_with_rowid=False,
)
