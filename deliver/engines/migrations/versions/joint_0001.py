"""First schema of ledger and Joint."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "joint_0001"
down_revision = None
branch_labels = None
depends_on = None

_APPEND_ONLY = ("ledger_event", "ledger_invoice", "ledger_posting")


def upgrade() -> None:
    """Create all tables; forbid changes of ledger rows (X-10)."""
    op.create_table(
        "joint_gateway",
        sa.Column("gateway", sa.String(length=32), nullable=False),
        sa.Column("customer", sa.String(length=13), nullable=False),
        sa.Column("serial", sa.String(length=24), nullable=False),
        sa.Column("model", sa.String(length=32), nullable=False),
        sa.Column("maker", sa.String(length=8), nullable=False),
        sa.Column("director_path", sa.String(length=32), nullable=False),
        sa.Column("running", sa.Boolean(), nullable=False),
        sa.Column("wanted_version", sa.BigInteger(), nullable=False),
        sa.Column("published_version", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("report_counter", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("gateway"),
    )
    op.create_index(op.f("ix_joint_gateway_customer"), "joint_gateway", ["customer"], unique=False)
    op.create_index("ix_joint_gateway_expiry", "joint_gateway", ["expires_at"], unique=False)
    op.create_table(
        "joint_nonce",
        sa.Column("signer", sa.String(length=64), nullable=False),
        sa.Column("nonce", sa.String(length=32), nullable=False),
        sa.Column("drop_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("signer", "nonce"),
    )
    op.create_index(op.f("ix_joint_nonce_drop_at"), "joint_nonce", ["drop_at"], unique=False)
    op.create_table(
        "joint_operator",
        sa.Column("operator", sa.String(length=32), nullable=False),
        sa.Column("api_key", sa.String(length=64), nullable=False),
        sa.Column("public_keys", sa.JSON(), nullable=False),
        sa.Column("threshold", sa.Integer(), nullable=False),
        sa.Column("delegated", sa.Boolean(), nullable=False),
        sa.Column("added_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("operator"),
        sa.UniqueConstraint("api_key"),
    )
    op.create_table(
        "joint_role",
        sa.Column("role", sa.String(length=48), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("role"),
    )
    op.create_table(
        "ledger_event",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("token", sa.String(length=160), nullable=False),
        sa.Column("at_s", sa.BigInteger(), nullable=False),
        sa.Column("payer", sa.String(length=64), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("token"),
    )
    op.create_index(op.f("ix_ledger_event_payer"), "ledger_event", ["payer"], unique=False)
    op.create_table(
        "ledger_invoice",
        sa.Column("payer", sa.String(length=64), nullable=False),
        sa.Column("month", sa.String(length=7), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("closed_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("payer", "month"),
    )
    op.create_table(
        "joint_installed",
        sa.Column("gateway", sa.String(length=32), nullable=False),
        sa.Column("software", sa.String(length=65), nullable=False),
        sa.Column("version", sa.String(length=48), nullable=False),
        sa.Column("release", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("fault", sa.String(length=200), nullable=True),
        sa.Column("reported_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["gateway"], ["joint_gateway.gateway"]),
        sa.PrimaryKeyConstraint("gateway", "software"),
    )
    op.create_table(
        "joint_quote",
        sa.Column("quote", sa.String(length=32), nullable=False),
        sa.Column("operator", sa.String(length=32), nullable=False),
        sa.Column("change", sa.String(length=8), nullable=False),
        sa.Column("manifest", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("made_at", sa.BigInteger(), nullable=False),
        sa.Column("accepted_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["operator"], ["joint_operator.operator"]),
        sa.PrimaryKeyConstraint("quote"),
    )
    op.create_table(
        "joint_report",
        sa.Column("gateway", sa.String(length=32), nullable=False),
        sa.Column("counter", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.Column("statement", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["gateway"], ["joint_gateway.gateway"]),
        sa.PrimaryKeyConstraint("gateway", "counter"),
    )
    op.create_table(
        "joint_software",
        sa.Column("operator", sa.String(length=32), nullable=False),
        sa.Column("software", sa.String(length=32), nullable=False),
        sa.Column("description", sa.String(length=2000), nullable=False),
        sa.Column("price_text", sa.String(length=2000), nullable=False),
        sa.Column("registered_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["operator"], ["joint_operator.operator"]),
        sa.PrimaryKeyConstraint("operator", "software"),
    )
    op.create_table(
        "ledger_posting",
        sa.Column("payer", sa.String(length=64), nullable=False),
        sa.Column("month", sa.String(length=7), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("account", sa.String(length=96), nullable=False),
        sa.Column("debit_yen", sa.BigInteger(), nullable=False),
        sa.Column("credit_yen", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("debit_yen = 0 OR credit_yen = 0", name="ck_ledger_posting_side"),
        sa.CheckConstraint("debit_yen >= 0 AND credit_yen >= 0", name="ck_ledger_posting_sign"),
        sa.ForeignKeyConstraint(["payer", "month"], ["ledger_invoice.payer", "ledger_invoice.month"]),
        sa.PrimaryKeyConstraint("payer", "month", "number"),
    )
    op.create_table(
        "joint_target",
        sa.Column("operator", sa.String(length=32), nullable=False),
        sa.Column("software", sa.String(length=32), nullable=False),
        sa.Column("customer", sa.String(length=13), nullable=False),
        sa.Column("version", sa.String(length=48), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("footprint_bytes", sa.BigInteger(), nullable=False),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["operator", "software"], ["joint_software.operator", "joint_software.software"]
        ),
        sa.PrimaryKeyConstraint("operator", "software", "customer"),
    )
    op.create_index("ix_joint_target_customer", "joint_target", ["customer"], unique=False)
    op.create_table(
        "joint_variant",
        sa.Column("target_path", sa.String(length=160), nullable=False),
        sa.Column("operator", sa.String(length=32), nullable=False),
        sa.Column("software", sa.String(length=32), nullable=False),
        sa.Column("version", sa.String(length=48), nullable=False),
        sa.Column("release", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False),
        sa.Column("custom", sa.JSON(), nullable=False),
        sa.Column("accepted_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["operator", "software"], ["joint_software.operator", "joint_software.software"]
        ),
        sa.PrimaryKeyConstraint("target_path"),
    )
    op.create_index("ix_joint_variant_software", "joint_variant", ["operator", "software"], unique=False)
    if op.get_bind().dialect.name == "sqlite":
        for table in _APPEND_ONLY:
            for change in ("UPDATE", "DELETE"):
                op.execute(
                    f"CREATE TRIGGER {table}_no_{change.lower()} BEFORE {change} ON {table} "
                    "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
                )
