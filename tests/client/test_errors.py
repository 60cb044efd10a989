"""What goes wrong reaches the user as one exception that reads well."""

import socket

import httpx
import pytest

from modelpress import Client, ModelpressError
from modelpress.client import Model
from tests.service_process import Service


def test_a_refused_recipe_points_at_the_step(client: Client, lenet: Model) -> None:
    recipe = [{"step": "half_precision"}, {"step": "shrinking"}]
    with pytest.raises(ModelpressError) as caught:
        client.create_job(lenet.id, recipe)
    error = caught.value
    assert error.status == 422
    assert error.code == "invalid"
    assert [each["pointer"] for each in error.errors] == ["/recipe/1/step"]
    head, line = str(error).splitlines()
    assert head.endswith("[invalid]")
    assert line.startswith("  /recipe/1/step: ")


def test_what_is_not_there(client: Client) -> None:
    with pytest.raises(ModelpressError) as caught:
        client.get_model("mdl_" + "0" * 32)
    assert (caught.value.status, caught.value.code) == (404, "not_found")


def test_an_id_is_never_taken_for_a_path(client: Client) -> None:
    with pytest.raises(ModelpressError) as caught:
        client.get_model("../jobs")
    assert caught.value.status == 404


def test_a_wrong_key(service: Service) -> None:
    with Client(service.url, "mp_wrong") as stranger, pytest.raises(ModelpressError) as caught:
        stranger.list_models()
    assert (caught.value.status, caught.value.code) == (401, "unauthenticated")


def test_nobody_answers() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening
        port = taken.getsockname()[1]
        with Client(f"http://127.0.0.1:{port}") as client, pytest.raises(ModelpressError) as caught:
            client.steps()
    assert caught.value.code == "unreachable"
    assert f"http://127.0.0.1:{port}" in str(caught.value)
    assert "modelpress up" in str(caught.value)


def test_a_page_of_a_proxy_is_an_error_too() -> None:
    error = ModelpressError.from_response(httpx.Response(502, text="<h1>Bad Gateway</h1>"))
    assert (error.status, error.code, error.title) == (502, "http_502", "Bad Gateway")
    assert "Bad Gateway" in str(error)
