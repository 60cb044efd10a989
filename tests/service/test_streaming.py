"""Big files against the real server: memory stays flat, downloads resume, a client that leaves leaves nothing."""

import socket
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from app.db.tables import Blob, Model
from app.settings import Settings
from tests.service.conftest import Server

MIB = 1 << 20


def pieces(count: int) -> Iterator[bytes]:
    """`count` MiB, each another one."""
    for number in range(count):
        yield number.to_bytes(4, "big") * (MIB // 4)


def digest(count: int) -> str:
    whole = sha256()
    for piece in pieces(count):
        whole.update(piece)
    return whole.hexdigest()


@pytest.fixture(params=["postgres:", "file"])
def settings(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path) -> Settings:
    url = "postgres:" if request.param == "postgres:" else f"file://{tmp_path}/blobs"
    return settings.model_copy(update={"storage_url": url})


def test_memory_stays_flat(server: Server) -> None:
    with server.client() as client:
        client.post("/v1/models?filename=small.onnx", content=b"x").raise_for_status()
        before = server.memory
        answer = client.post("/v1/models?filename=big.onnx", content=pieces(200))
        assert answer.json()["sha256"] == digest(200)
        uploaded = server.memory
        received = sha256()
        with client.stream("GET", f"/v1/models/{answer.json()['id']}/content") as download:
            for piece in download.iter_raw():
                received.update(piece)
        assert received.hexdigest() == digest(200)
        assert max(uploaded, server.memory) - before < 64 * MIB


def test_curl_goes_on_with_a_download(server: Server, tmp_path: Path) -> None:
    with server.client() as client:
        model = client.post("/v1/models?filename=net.onnx", content=pieces(5)).json()
        whole = b"".join(pieces(5))
        target = tmp_path / "net.onnx"
        target.write_bytes(whole[: 2 * MIB + 17])
        url = f"{server.url}/v1/models/{model['id']}/content"
        header = f"Authorization: {server.headers['Authorization']}"
        command = ["curl", "--fail", "--silent", "-C", "-", "-H", header, "-o", str(target), url]
        subprocess.run(command, check=True, timeout=30)
        assert target.read_bytes() == whole


def test_a_client_that_leaves_leaves_nothing(server: Server, engine: Engine) -> None:
    def broken() -> Iterator[bytes]:
        yield from pieces(20)
        assert rows(engine, Blob) == 1  # it had arrived that far
        raise ConnectionAbortedError("the client goes away")

    with server.client() as client, pytest.raises(ConnectionAbortedError):
        client.post("/v1/models?filename=net.onnx", content=broken())
    with server.client() as client:
        for _ in range(100):
            if rows(engine, Blob) == 0:
                break
            client.get("/livez")
    assert rows(engine, Blob) == rows(engine, Model) == 0


def test_a_download_that_is_left_leaves_the_server_well(server: Server) -> None:
    with server.client() as client:
        model = client.post("/v1/models?filename=net.onnx", content=pieces(30)).json()
        url = f"/v1/models/{model['id']}/content"
        for _ in range(30):  # more often than there are database connections
            with server.client() as leaver, leaver.stream("GET", url) as download:
                next(download.iter_raw())
        assert client.get(url, headers={"Range": "bytes=0-3"}).content == bytes(4)


def test_a_file_that_is_too_large_is_refused_before_it_is_sent(server: Server) -> None:
    address = server.url.removeprefix("http://").split(":")
    head = (
        "POST /v1/models?filename=a.onnx HTTP/1.1\r\nHost: service\r\n"
        f"Authorization: {server.headers['Authorization']}\r\nContent-Length: {1 << 50}\r\n\r\n"
    )
    with socket.create_connection((address[0], int(address[1])), timeout=10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def rows(engine: Engine, table: type[Blob] | type[Model]) -> int:
    with Session(engine) as session:
        return session.scalar(select(func.count()).select_from(table)) or 0
