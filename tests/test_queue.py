"""Wake-ups as they lie in Redis, and what happens when there is no Redis."""

import base64
import json
import logging
import subprocess
import sys
import time
from uuid import uuid4

import pytest
import redis

from app.queue import QUEUES, make_celery, wake


@pytest.mark.parametrize("queue", QUEUES)
def test_a_wake_up_carries_an_id_as_json_and_nothing_else(redis_url, queue):
    job_id = uuid4()
    wake(make_celery(redis_url), queue, job_id)
    with redis.Redis.from_url(redis_url) as client:
        [message] = client.lrange(queue, 0, -1)
    message = json.loads(message)
    assert message["headers"]["task"] == "modelpress.look"
    assert message["content-type"] == "application/json"
    args, kwargs, _ = json.loads(base64.b64decode(message["body"]))
    assert args == [str(job_id)]
    assert kwargs == {}


def test_a_redis_that_is_down_is_logged_and_costs_the_caller_no_error_and_little_time(caplog):
    celery = make_celery("redis://127.0.0.1:1/0")
    job_id = uuid4()
    begun = time.monotonic()
    with caplog.at_level(logging.WARNING, "app.queue"):
        wake(celery, "cpu", job_id)
    assert time.monotonic() - begun < 5
    assert str(job_id) in caplog.text


def test_sending_needs_no_torch():
    code = "import sys, app.queue; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
