"""Where the service is and how a client introduces itself."""

import os
from pathlib import Path
from typing import Any

import httpx

from modelpress import __version__

DEFAULT_URL = "http://127.0.0.1:8000"
THIS_MACHINE = ("127.0.0.1", "::1", "localhost")
TIMEOUT = httpx.Timeout(60.0, connect=5.0)  # longer than a service holds an answer back


def http_options(url: str | None, api_key: str | None) -> dict[str, Any]:
    """Options of httpx's clients. What is not given is read from MODELPRESS_URL and MODELPRESS_API_KEY.

    Without a key, a service on this machine is sent the one that `modelpress up` has made; others never see it.
    """
    base_url = httpx.URL(url or os.environ.get("MODELPRESS_URL") or DEFAULT_URL)
    key = api_key or os.environ.get("MODELPRESS_API_KEY") or (embedded_key() if base_url.host in THIS_MACHINE else None)
    headers = {"User-Agent": f"modelpress/{__version__}", "Accept": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return {"base_url": base_url, "headers": headers, "timeout": TIMEOUT}


def embedded_key() -> str | None:
    """The key that `modelpress up` made on this machine."""
    home = Path(os.environ.get("MODELPRESS_HOME") or Path.home() / ".modelpress")
    try:
        return (home / "api-key").read_text().strip() or None
    except OSError:
        return None
