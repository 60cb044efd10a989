"""Downloads: whole, in part, not at all when nothing changed."""

from base64 import b64encode
from hashlib import sha256

import httpx
import pytest
from sqlalchemy import Engine, delete
from sqlalchemy.orm import Session

from app.db.tables import BlobChunk
from tests.service.as_worker import Worker
from tests.service.conftest import Uploads
from tests.service.examples import report

pytestmark = pytest.mark.anyio

CONTENT = bytes(range(256)) * 12_288  # three chunks of a MiB
ETAG = f'"{sha256(CONTENT).hexdigest()}"'


@pytest.fixture
async def url(uploads: Uploads) -> str:
    return f"/v1/models/{await uploads.model(CONTENT)}/content"


async def test_the_whole_file(client: httpx.AsyncClient, url: str) -> None:
    answer = await client.get(url)
    assert answer.status_code == 200
    assert answer.content == CONTENT
    expected = {
        "etag": ETAG,
        "accept-ranges": "bytes",
        "content-length": str(len(CONTENT)),
        "content-type": "application/octet-stream",
        "repr-digest": f"sha-256=:{b64encode(sha256(CONTENT).digest()).decode()}:",
        "content-disposition": "attachment; filename=\"net.onnx\"; filename*=UTF-8''net.onnx",
    }
    assert {name: answer.headers[name] for name in expected} == expected


async def test_head_has_all_but_the_bytes(client: httpx.AsyncClient, url: str) -> None:
    whole, head = await client.get(url), await client.head(url)
    assert head.status_code == 200
    assert head.content == b""
    assert {**whole.headers, "x-request-id": ""} == {**head.headers, "x-request-id": ""}


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-", 10, len(CONTENT)),
        ("bytes=1048570-1048600", 1048570, 1048601),
        ("bytes=-5", len(CONTENT) - 5, len(CONTENT)),
        ("bytes=5-99999999999", 5, len(CONTENT)),
        ("bytes=-99999999999", 0, len(CONTENT)),
    ],
)
async def test_a_range(client: httpx.AsyncClient, url: str, asked: str, start: int, stop: int) -> None:
    answer = await client.get(url, headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.content == CONTENT[start:stop]
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(CONTENT)}"
    assert answer.headers["content-length"] == str(stop - start)
    assert (await client.head(url, headers={"Range": asked})).headers["content-range"] == answer.headers[
        "content-range"
    ]


@pytest.mark.parametrize("asked", [f"bytes={len(CONTENT)}-", "bytes=-0", "bytes=99999999-99999999"])
async def test_a_range_outside_the_file(client: httpx.AsyncClient, url: str, asked: str) -> None:
    answer = await client.get(url, headers={"Range": asked})
    assert (answer.status_code, answer.json()["code"]) == (416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{len(CONTENT)}"


@pytest.mark.parametrize("asked", ["bytes=5-2", "lines=0-1", "bytes=a-b", "bytes=-", "bytes=0-1,5-6"])
async def test_what_is_no_single_range_gives_the_whole(client: httpx.AsyncClient, url: str, asked: str) -> None:
    answer = await client.get(url, headers={"Range": asked})
    assert (answer.status_code, len(answer.content)) == (200, len(CONTENT))


async def test_a_download_goes_on_only_with_the_same_file(client: httpx.AsyncClient, url: str) -> None:
    same = await client.get(url, headers={"Range": "bytes=3000000-", "If-Range": ETAG})
    other = await client.get(url, headers={"Range": "bytes=3000000-", "If-Range": '"another"'})
    assert (same.status_code, len(same.content)) == (206, len(CONTENT) - 3_000_000)
    assert (other.status_code, len(other.content)) == (200, len(CONTENT))


@pytest.mark.parametrize("known", [ETAG, f'"x", {ETAG}', f"W/{ETAG}", "*"])
async def test_a_file_that_is_known_is_not_sent(client: httpx.AsyncClient, url: str, known: str) -> None:
    for answer in (
        await client.get(url, headers={"If-None-Match": known}),
        await client.head(url, headers={"If-None-Match": known, "Range": "bytes=0-1"}),
    ):
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", ETAG)
    assert (await client.get(url, headers={"If-None-Match": '"x"'})).status_code == 200


async def test_a_name_cannot_break_out_of_its_header(client: httpx.AsyncClient, uploads: Uploads) -> None:
    name = 'a"; x=\r\nSet-Cookie: é.onnx'
    model = (await client.post("/v1/models", params={"filename": name}, content=b"x")).json()
    uploads.worker.read_model(model["id"])
    disposition = (await client.get(f"/v1/models/{model['id']}/content")).headers["content-disposition"]
    plain, encoded = disposition.removeprefix("attachment; filename=").split("; filename*=UTF-8''")
    assert plain == '"a___x___Set-Cookie___.onnx"'
    assert "%0D%0A" in encoded


async def test_a_format_that_the_model_does_not_have(client: httpx.AsyncClient, url: str) -> None:
    assert (await client.get(url, params={"format": "onnx"})).status_code == 200
    answer = await client.get(url, params={"format": "packed"})
    assert answer.status_code == 404
    assert "it has: onnx" in answer.json()["detail"]


async def test_each_format_has_its_own_bytes_name_and_tag(
    client: httpx.AsyncClient, uploads: Uploads, worker: Worker
) -> None:
    job = await uploads.job(formats=["safetensors", "packed"])
    worker.claim(job["id"])
    files = {"packed .packed": b"small", "safetensors .zip": b"a folder of weights"}
    model = worker.succeed(job["id"], report(), files)

    listed = (await client.get("/v1/models")).json()["items"][0]["files"]
    assert [(file["format"], file["filename"]) for file in listed] == [
        ("packed", "net.packed"),
        ("safetensors", "net.zip"),
    ]
    url = f"/v1/models/{model}/content"
    for file, content in zip(listed, files.values(), strict=True):
        answer = await client.get(url, params={"format": file["format"]})
        assert answer.content == content
        assert answer.headers["etag"] == f'"{file["sha256"]}"' == f'"{sha256(content).hexdigest()}"'
        assert f'filename="{file["filename"]}"' in answer.headers["content-disposition"]
    assert (await client.get(url)).content == b"small"
    absent = await client.get(url, params={"format": "onnx"})
    assert (absent.status_code, absent.json()["detail"]) == (
        404,
        "This model has no onnx file; it has: packed, safetensors.",
    )


async def test_a_dataset_comes_back_too(client: httpx.AsyncClient, uploads: Uploads) -> None:
    dataset = await uploads.dataset(content=b"rows and columns")
    answer = await client.get(f"/v1/datasets/{dataset}/content", headers={"Range": "bytes=5-7"})
    assert (answer.status_code, answer.content) == (206, b"and")


async def test_bytes_that_have_gone_are_a_404(client: httpx.AsyncClient, url: str, engine: Engine) -> None:
    with Session(engine) as session:
        session.execute(delete(BlobChunk))
        session.commit()
    assert (await client.get(url)).status_code == 404
