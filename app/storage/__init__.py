"""Where the bytes of models, datasets and results are kept."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy import Engine

from app.storage.base import BlobStore
from app.storage.files import FileStore
from app.storage.postgres import PostgresStore


def open_store(storage_url: str, engine: Engine) -> BlobStore:
    """The store that STORAGE_URL names. Raises ValueError where it names none."""
    parts = urlsplit(storage_url)
    match parts.scheme:
        case "postgres":
            return PostgresStore(engine)
        case "file" if parts.netloc in {"", "localhost"} and parts.path.startswith("/"):
            return FileStore(Path(unquote(parts.path)), engine)
        case "s3":
            raise ValueError("STORAGE_URL: s3:// comes with a later release; use postgres: or file:///folder")
        case _:
            raise ValueError(f"STORAGE_URL must be postgres: or file:///folder, not {storage_url!r}")
