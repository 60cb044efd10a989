"""Alembic's entry: on the connection that app.db.migrate hands in, or on DATABASE_URL from the command line."""

import os

from alembic import context
from sqlalchemy import Connection

from app.db.session import make_engine
from app.db.tables import Base


def migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    migrate(given)
else:
    with make_engine(os.environ["DATABASE_URL"]).begin() as connection:
        migrate(connection)
