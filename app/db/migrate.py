"""Brings the database to the newest schema. `python -m app.db.migrate` does it to DATABASE_URL."""

import os
import sys
from importlib.util import find_spec

from alembic import command
from alembic.config import Config
from sqlalchemy import text

from app.db.session import make_engine

LOCK = 0x6D696772617465  # "migrate": any number, as long as every starting process means the same


def config() -> Config:
    spec = find_spec("migrations")  # a package, so that it is found in a wheel as well as in a checkout
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("the package `migrations` is missing from this installation")
    alembic = Config()
    alembic.set_main_option("script_location", spec.submodule_search_locations[0].replace("%", "%%"))
    return alembic


def upgrade(url: str) -> None:
    """One transaction under an advisory lock: many processes may start at once, the others wait and find it done."""
    engine = make_engine(url)
    try:
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            alembic = config()
            alembic.attributes["connection"] = connection
            command.upgrade(alembic, "head")
    finally:
        engine.dispose()


if __name__ == "__main__":
    try:
        upgrade(os.environ["DATABASE_URL"])
    except KeyError:
        sys.exit("set DATABASE_URL")
