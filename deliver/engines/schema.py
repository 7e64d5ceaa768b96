"""Tables of Flets Joint: operators, softwares, their files, targets, gateways' documents. The ledger's come along.

Rules
- Times are unix seconds, sizes bytes, hashes hex, IDs their text form; lists are JSON.
- A change here needs a migration in `migrations/versions`; a test compares both.
"""

from __future__ import annotations

import sqlalchemy as sa

from carrier.ledger.schema import metadata

joint_operator = sa.Table(
    "joint_operator",
    metadata,
    sa.Column("operator", sa.String(32), primary_key=True),
    sa.Column("api_key", sa.String(64), nullable=False, unique=True),
    sa.Column("public_keys", sa.JSON, nullable=False),
    sa.Column("threshold", sa.Integer, nullable=False),
    sa.Column("delegated", sa.Boolean, nullable=False),
    sa.Column("added_at", sa.BigInteger, nullable=False),
)

joint_role = sa.Table(
    "joint_role",
    metadata,
    sa.Column("role", sa.String(48), primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
)

joint_software = sa.Table(
    "joint_software",
    metadata,
    sa.Column("operator", sa.ForeignKey("joint_operator.operator"), primary_key=True),
    sa.Column("software", sa.String(32), primary_key=True),
    sa.Column("description", sa.String(2000), nullable=False),
    sa.Column("price_text", sa.String(2000), nullable=False),
    sa.Column("registered_at", sa.BigInteger, nullable=False),
)

joint_variant = sa.Table(
    "joint_variant",
    metadata,
    sa.Column("target_path", sa.String(160), primary_key=True),
    sa.Column("operator", sa.String(32), nullable=False),
    sa.Column("software", sa.String(32), nullable=False),
    sa.Column("version", sa.String(48), nullable=False),
    sa.Column("release", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("stored_bytes", sa.BigInteger, nullable=False),
    sa.Column("custom", sa.JSON, nullable=False),
    sa.Column("accepted_at", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(["operator", "software"], ["joint_software.operator", "joint_software.software"]),
    sa.Index("ix_joint_variant_software", "operator", "software"),
)

joint_quote = sa.Table(
    "joint_quote",
    metadata,
    sa.Column("quote", sa.String(32), primary_key=True),
    sa.Column("operator", sa.ForeignKey("joint_operator.operator"), nullable=False),
    sa.Column("change", sa.String(8), nullable=False),
    sa.Column("manifest", sa.LargeBinary, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sa.Column("made_at", sa.BigInteger, nullable=False),
    sa.Column("accepted_at", sa.BigInteger),
)

joint_target = sa.Table(
    "joint_target",
    metadata,
    sa.Column("operator", sa.String(32), primary_key=True),
    sa.Column("software", sa.String(32), primary_key=True),
    sa.Column("customer", sa.String(13), primary_key=True),
    sa.Column("version", sa.String(48), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("run", sa.Integer, nullable=False),
    sa.Column("footprint_bytes", sa.BigInteger, nullable=False),
    sa.Column("changed_at", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(["operator", "software"], ["joint_software.operator", "joint_software.software"]),
    sa.Index("ix_joint_target_customer", "customer"),
)

joint_gateway = sa.Table(
    "joint_gateway",
    metadata,
    sa.Column("gateway", sa.String(32), primary_key=True),
    sa.Column("customer", sa.String(13), nullable=False, index=True),
    sa.Column("serial", sa.String(24), nullable=False),
    sa.Column("model", sa.String(32), nullable=False),
    sa.Column("maker", sa.String(8), nullable=False),
    sa.Column("director_path", sa.String(32), nullable=False),
    sa.Column("running", sa.Boolean, nullable=False),
    sa.Column("wanted_version", sa.BigInteger, nullable=False),
    sa.Column("published_version", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("report_counter", sa.BigInteger, nullable=False),
    sa.Index("ix_joint_gateway_expiry", "expires_at"),
)

joint_report = sa.Table(
    "joint_report",
    metadata,
    sa.Column("gateway", sa.ForeignKey("joint_gateway.gateway"), primary_key=True),
    sa.Column("counter", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("received_at", sa.BigInteger, nullable=False),
    sa.Column("statement", sa.LargeBinary, nullable=False),
)

joint_installed = sa.Table(
    "joint_installed",
    metadata,
    sa.Column("gateway", sa.ForeignKey("joint_gateway.gateway"), primary_key=True),
    sa.Column("software", sa.String(65), primary_key=True),
    sa.Column("version", sa.String(48), nullable=False),
    sa.Column("release", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(32), nullable=False),
    sa.Column("fault", sa.String(200)),
    sa.Column("reported_at", sa.BigInteger, nullable=False),
)

joint_nonce = sa.Table(
    "joint_nonce",
    metadata,
    sa.Column("signer", sa.String(64), primary_key=True),
    sa.Column("nonce", sa.String(32), primary_key=True),
    sa.Column("drop_at", sa.BigInteger, nullable=False, index=True),
)

__all__ = [
    "joint_gateway",
    "joint_installed",
    "joint_nonce",
    "joint_operator",
    "joint_quote",
    "joint_report",
    "joint_role",
    "joint_software",
    "joint_target",
    "joint_variant",
    "metadata",
]
