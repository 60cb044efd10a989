"""Where the service is and how a client introduces itself."""

import os
from typing import Any

import httpx

from modelpress import __version__

DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT = httpx.Timeout(60.0, connect=5.0)  # longer than a service holds an answer back


def http_options(url: str | None, api_key: str | None) -> dict[str, Any]:
    """Options of httpx's clients. What is not given is read from MODELPRESS_URL and MODELPRESS_API_KEY."""
    key = api_key or os.environ.get("MODELPRESS_API_KEY")
    headers = {"User-Agent": f"modelpress/{__version__}", "Accept": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    base_url = url or os.environ.get("MODELPRESS_URL") or DEFAULT_URL
    return {"base_url": base_url, "headers": headers, "timeout": TIMEOUT}
