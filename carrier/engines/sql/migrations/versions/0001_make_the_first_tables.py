"""Make the first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "line",
        sa.Column("line_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("customer_id", sa.String(length=13), nullable=False),
        sa.Column("region", sa.String(length=16), nullable=False),
        sa.Column("access_type", sa.String(length=32), nullable=False),
        sa.Column("opened_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=False),
        sa.Column("access_key_hash", sa.String(length=160), nullable=True),
        sa.Column("access_key_tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("access_key_locked_until", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("line_id", name=op.f("pk_line")),
        sa.UniqueConstraint("customer_id", name=op.f("uq_line_customer_id")),
    )
    op.create_table(
        "line_change",
        sa.Column("one", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("counter", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("one", name=op.f("pk_line_change")),
    )
    op.create_table(
        "nonce",
        sa.Column("signer", sa.LargeBinary(length=32), nullable=False),
        sa.Column("nonce", sa.String(length=32), nullable=False),
        sa.Column("drop_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("signer", "nonce", name=op.f("pk_nonce")),
    )
    with op.batch_alter_table("nonce", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_nonce_drop_at"), ["drop_at"], unique=False)

    op.create_table(
        "storage_contract",
        sa.Column("contract", sa.String(length=13), nullable=False),
        sa.Column("plan", sa.String(length=16), nullable=False),
        sa.Column("opened_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=False),
        sa.Column("box_key", sa.LargeBinary(length=32), nullable=True),
        sa.Column("sign_key", sa.LargeBinary(length=32), nullable=True),
        sa.Column("used_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("used_bytes >= 0", name="ck_storage_contract_used"),
        sa.PrimaryKeyConstraint("contract", name=op.f("pk_storage_contract")),
    )
    op.create_table(
        "device",
        sa.Column("device", sa.LargeBinary(length=32), nullable=False),
        sa.Column("contract", sa.String(length=13), nullable=False),
        sa.Column("cert", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("enrolled_at", sa.BigInteger(), nullable=False),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["contract"], ["storage_contract.contract"], name=op.f("fk_device_contract")),
        sa.PrimaryKeyConstraint("device", name=op.f("pk_device")),
    )
    with op.batch_alter_table("device", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_device_contract"), ["contract"], unique=False)

    op.create_table(
        "enrolment_code",
        sa.Column("code_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("contract", sa.String(length=13), nullable=False),
        sa.Column("valid_to", sa.BigInteger(), nullable=False),
        sa.Column("used_by", sa.LargeBinary(length=32), nullable=True),
        sa.ForeignKeyConstraint(
            ["contract"], ["storage_contract.contract"], name=op.f("fk_enrolment_code_contract")
        ),
        sa.PrimaryKeyConstraint("code_sha256", name=op.f("pk_enrolment_code")),
    )
    with op.batch_alter_table("enrolment_code", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_enrolment_code_contract"), ["contract"], unique=False)

    op.create_table(
        "gateway_alarm",
        sa.Column("line_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("serial", sa.String(length=24), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("first_at", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.BigInteger(), nullable=False),
        sa.Column("last_key", sa.LargeBinary(length=32), nullable=False),
        sa.ForeignKeyConstraint(["line_id"], ["line.line_id"], name=op.f("fk_gateway_alarm_line_id")),
        sa.PrimaryKeyConstraint("line_id", "serial", "kind", name=op.f("pk_gateway_alarm")),
    )
    op.create_table(
        "gateway_contract",
        sa.Column(
            "gateway_contract_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column("line_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("serial", sa.String(length=24), nullable=False),
        sa.Column("model", sa.String(length=32), nullable=False),
        sa.Column("maker", sa.String(length=8), nullable=False),
        sa.Column("secret", sa.LargeBinary(length=64), nullable=False),
        sa.Column("valid_from", sa.BigInteger(), nullable=False),
        sa.Column("valid_to", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["line_id"], ["line.line_id"], name=op.f("fk_gateway_contract_line_id")),
        sa.PrimaryKeyConstraint("gateway_contract_id", name=op.f("pk_gateway_contract")),
    )
    with op.batch_alter_table("gateway_contract", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_gateway_contract_line_id"), ["line_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_gateway_contract_serial"), ["serial"], unique=False)

    op.create_table(
        "line_prefix",
        sa.Column("prefix_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("line_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("first", sa.LargeBinary(length=8), nullable=False),
        sa.Column("last", sa.LargeBinary(length=8), nullable=False),
        sa.Column("length", sa.Integer(), nullable=False),
        sa.Column("valid_from", sa.BigInteger(), nullable=False),
        sa.Column("valid_to", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("valid_from <= valid_to", name="ck_line_prefix_interval"),
        sa.ForeignKeyConstraint(["line_id"], ["line.line_id"], name=op.f("fk_line_prefix_line_id")),
        sa.PrimaryKeyConstraint("prefix_id", name=op.f("pk_line_prefix")),
    )
    with op.batch_alter_table("line_prefix", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_line_prefix_line_id"), ["line_id"], unique=False)
        batch_op.create_index("ix_line_prefix_range", ["first", "last"], unique=False)

    op.create_table(
        "storage_entitlement",
        sa.Column("contract", sa.String(length=13), nullable=False),
        sa.Column("service", sa.String(length=32), nullable=False),
        sa.Column("category", sa.String(length=32), nullable=False),
        sa.Column("valid_from", sa.BigInteger(), nullable=False),
        sa.Column("valid_to", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["contract"], ["storage_contract.contract"], name=op.f("fk_storage_entitlement_contract")
        ),
        sa.PrimaryKeyConstraint(
            "contract", "service", "category", "valid_from", name=op.f("pk_storage_entitlement")
        ),
    )
    op.create_table(
        "storage_line",
        sa.Column("contract", sa.String(length=13), nullable=False),
        sa.Column("line_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("valid_from", sa.BigInteger(), nullable=False),
        sa.Column("valid_to", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["contract"], ["storage_contract.contract"], name=op.f("fk_storage_line_contract")
        ),
        sa.ForeignKeyConstraint(["line_id"], ["line.line_id"], name=op.f("fk_storage_line_line_id")),
        sa.PrimaryKeyConstraint("contract", "line_id", "valid_from", name=op.f("pk_storage_line")),
    )
    op.create_table(
        "gateway_enrolment",
        sa.Column("gateway", sa.String(length=32), nullable=False),
        sa.Column(
            "gateway_contract_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column("key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("director_path", sa.String(length=32), nullable=False),
        sa.Column("enrolled_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["gateway_contract_id"],
            ["gateway_contract.gateway_contract_id"],
            name=op.f("fk_gateway_enrolment_gateway_contract_id"),
        ),
        sa.PrimaryKeyConstraint("gateway", name=op.f("pk_gateway_enrolment")),
        sa.UniqueConstraint("director_path", name=op.f("uq_gateway_enrolment_director_path")),
        sa.UniqueConstraint("gateway_contract_id", name=op.f("uq_gateway_enrolment_gateway_contract_id")),
        sa.UniqueConstraint("key", name=op.f("uq_gateway_enrolment_key")),
    )
    op.create_table(
        "pack",
        sa.Column("pack_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("contract", sa.String(length=13), nullable=False),
        sa.Column("device", sa.LargeBinary(length=32), nullable=False),
        sa.Column("epoch", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("incarnation", sa.String(length=32), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=12), nullable=False),
        sa.Column("stored_at", sa.BigInteger(), nullable=False),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        sa.Column("protected_until", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("state IN ('live','condemned','deleting','gone')", name="ck_pack_state"),
        sa.ForeignKeyConstraint(["contract"], ["storage_contract.contract"], name=op.f("fk_pack_contract")),
        sa.ForeignKeyConstraint(["device"], ["device.device"], name=op.f("fk_pack_device")),
        sa.PrimaryKeyConstraint("pack_id", name=op.f("pk_pack")),
        sa.UniqueConstraint("incarnation", name=op.f("uq_pack_incarnation")),
    )
    with op.batch_alter_table("pack", schema=None) as batch_op:
        batch_op.create_index("ix_pack_name", ["contract", "sha256"], unique=False)
        batch_op.create_index("ix_pack_state", ["state"], unique=False)
        batch_op.create_index(
            "uq_pack_usable",
            ["device", "sha256"],
            unique=True,
            sqlite_where=sa.text("state IN ('live','condemned')"),
            postgresql_where=sa.text("state IN ('live','condemned')"),
        )

    op.create_table(
        "session",
        sa.Column("session", sa.String(length=32), nullable=False),
        sa.Column("token_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("contract", sa.String(length=13), nullable=False),
        sa.Column("device", sa.LargeBinary(length=32), nullable=False),
        sa.Column("backup_set", sa.String(length=64), nullable=False),
        sa.Column("mode", sa.String(length=8), nullable=False),
        sa.Column("epoch", sa.String(length=64), nullable=False),
        sa.Column("header", sa.LargeBinary(), nullable=False),
        sa.Column("gateway_key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("opened_at", sa.BigInteger(), nullable=False),
        sa.Column("lease_until", sa.BigInteger(), nullable=False),
        sa.Column("closed_at", sa.BigInteger(), nullable=False),
        sa.Column("reserved_bytes", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("reserved_bytes >= 0", name="ck_session_reserved"),
        sa.ForeignKeyConstraint(
            ["contract"], ["storage_contract.contract"], name=op.f("fk_session_contract")
        ),
        sa.ForeignKeyConstraint(["device"], ["device.device"], name=op.f("fk_session_device")),
        sa.PrimaryKeyConstraint("session", name=op.f("pk_session")),
        sa.UniqueConstraint("token_sha256", name=op.f("uq_session_token_sha256")),
    )
    with op.batch_alter_table("session", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_session_contract"), ["contract"], unique=False)
        batch_op.create_index(batch_op.f("ix_session_device"), ["device"], unique=False)

    op.create_table(
        "chunk",
        sa.Column("pack_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("chunk_id", sa.LargeBinary(length=32), nullable=False),
        sa.Column("offset_bytes", sa.BigInteger(), nullable=False),
        sa.Column("length_bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["pack_id"], ["pack.pack_id"], name=op.f("fk_chunk_pack_id")),
        sa.PrimaryKeyConstraint("pack_id", "chunk_id", name=op.f("pk_chunk")),
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("chunk", schema=None) as batch_op:
        batch_op.create_index("ix_chunk_id", ["chunk_id"], unique=False)

    op.create_table(
        "generation",
        sa.Column("generation", sa.String(length=32), nullable=False),
        sa.Column("contract", sa.String(length=13), nullable=False),
        sa.Column("device", sa.LargeBinary(length=32), nullable=False),
        sa.Column("backup_set", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.String(length=64), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("session", sa.String(length=32), nullable=False),
        sa.Column("root_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("refs_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("root", sa.LargeBinary(), nullable=False),
        sa.Column("receipt", sa.LargeBinary(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.Column("trashed_at", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.CheckConstraint("state IN ('kept','trash','gone')", name="ck_generation_state"),
        sa.ForeignKeyConstraint(
            ["contract"], ["storage_contract.contract"], name=op.f("fk_generation_contract")
        ),
        sa.ForeignKeyConstraint(["device"], ["device.device"], name=op.f("fk_generation_device")),
        sa.ForeignKeyConstraint(["session"], ["session.session"], name=op.f("fk_generation_session")),
        sa.PrimaryKeyConstraint("generation", name=op.f("pk_generation")),
        sa.UniqueConstraint(
            "device", "backup_set", "sequence", name=op.f("uq_generation_device_backup_set_sequence")
        ),
    )
    with op.batch_alter_table("generation", schema=None) as batch_op:
        batch_op.create_index("ix_generation_set", ["contract", "backup_set"], unique=False)

    op.create_table(
        "session_pack",
        sa.Column("pack_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("session", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["pack_id"], ["pack.pack_id"], name=op.f("fk_session_pack_pack_id")),
        sa.ForeignKeyConstraint(["session"], ["session.session"], name=op.f("fk_session_pack_session")),
        sa.PrimaryKeyConstraint("pack_id", "session", name=op.f("pk_session_pack")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "upload",
        sa.Column("incarnation", sa.String(length=32), nullable=False),
        sa.Column("session", sa.String(length=32), nullable=False),
        sa.Column("contract", sa.String(length=13), nullable=False),
        sa.Column("sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("drop_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["contract"], ["storage_contract.contract"], name=op.f("fk_upload_contract")),
        sa.ForeignKeyConstraint(["session"], ["session.session"], name=op.f("fk_upload_session")),
        sa.PrimaryKeyConstraint("incarnation", name=op.f("pk_upload")),
    )
    with op.batch_alter_table("upload", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_upload_contract"), ["contract"], unique=False)
        batch_op.create_index(batch_op.f("ix_upload_session"), ["session"], unique=False)

    op.create_table(
        "generation_pack",
        sa.Column("pack_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("generation", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(
            ["generation"], ["generation.generation"], name=op.f("fk_generation_pack_generation")
        ),
        sa.ForeignKeyConstraint(["pack_id"], ["pack.pack_id"], name=op.f("fk_generation_pack_pack_id")),
        sa.PrimaryKeyConstraint("pack_id", "generation", name=op.f("pk_generation_pack")),
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("generation_pack", schema=None) as batch_op:
        batch_op.create_index("ix_generation_pack_generation", ["generation"], unique=False)
    op.execute("INSERT INTO line_change (one, counter) VALUES (1, 0)")
