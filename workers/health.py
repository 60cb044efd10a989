"""`python -m workers.health`: exit code 0 while a worker on this host says that it is there. For containers."""

import socket
import sys

from redis import Redis
from redis.exceptions import RedisError

from app.presence import PREFIX
from app.settings import get_settings


def main() -> None:
    try:
        with Redis.from_url(get_settings().redis_url, socket_timeout=5, socket_connect_timeout=5) as redis:
            announced = any(redis.scan_iter(match=f"{PREFIX}{socket.gethostname()}:*"))
    except RedisError as error:
        sys.exit(f"Redis does not answer: {error}")
    if not announced:
        sys.exit("no worker on this host has announced itself")


if __name__ == "__main__":
    main()
