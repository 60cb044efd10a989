import pytest

from app.storage import open_store
from app.storage.files import FileStore
from app.storage.postgres import PostgresStore


def test_the_address_says_which_store(engine, tmp_path):
    assert isinstance(open_store("postgres:", engine), PostgresStore)
    assert isinstance(open_store(f"file://{tmp_path}/new%20folder/blobs", engine), FileStore)
    assert (tmp_path / "new folder" / "blobs").is_dir()


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("s3://bucket/prefix", "s3:// comes with a later release"),
        ("file://host/folder", "must be postgres: or file:///folder"),
        ("file:relative", "must be postgres: or file:///folder"),
        ("/folder", "must be postgres: or file:///folder"),
        ("", "must be postgres: or file:///folder"),
    ],
)
def test_another_address_is_refused_in_a_sentence(engine, address, sentence):
    with pytest.raises(ValueError, match=sentence):
        open_store(address, engine)
