"""Weights beside an architecture, and files whose format does not tell their suffix."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("models", sa.Column("architecture_id", sa.Uuid(), nullable=True))
    op.create_foreign_key(op.f("fk_models_architecture_id"), "models", "models", ["architecture_id"], ["id"])
    op.create_index(op.f("ix_models_architecture_id"), "models", ["architecture_id"], unique=False)
    op.create_check_constraint(
        op.f("ck_models_result_has_its_own_architecture"), "models", "architecture_id IS NULL OR parent_id IS NULL"
    )
    op.add_column("model_files", sa.Column("suffix", sa.Text(), nullable=True))
    op.execute(r"""
        UPDATE model_files SET suffix = coalesce(substring(filename FROM '\.[^.]*$'), '.' || format)
        FROM models WHERE models.id = model_id
    """)
    op.alter_column("model_files", "suffix", nullable=False)


def downgrade() -> None:
    op.drop_column("model_files", "suffix")
    op.drop_column("models", "architecture_id")
