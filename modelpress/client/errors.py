"""What a call raises when the service says no, or cannot be reached."""

from typing import Any, Self

import httpx


class ModelpressError(Exception):
    """A problem as the service describes it (RFC 9457). `code` is stable; `errors` points at the fields at fault.

    `status` is the HTTP status, None where no answer came (code `unreachable`) or where an upload was rejected.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        status: int | None = None,
        title: str = "",
        errors: tuple[dict[str, str], ...] = (),
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.status = status
        self.title = title
        self.errors = errors

    def __str__(self) -> str:
        head = f"{self.detail or self.title} [{self.code}]"
        pointed = [f"  {error.get('pointer') or '/'}: {error.get('detail', '')}" for error in self.errors]
        return "\n".join([head, *pointed])

    @classmethod
    def from_response(cls, response: httpx.Response) -> Self:
        """From an answer whose body has been read."""
        problem = _problem(response)
        return cls(
            str(problem.get("code") or f"http_{response.status_code}"),
            str(problem.get("detail") or ""),
            status=response.status_code,
            title=str(problem.get("title") or response.reason_phrase),
            errors=tuple(problem.get("errors") or ()),
        )

    @classmethod
    def unreachable(cls, url: object, error: httpx.TransportError) -> Self:
        reason = str(error) or type(error).__name__
        return cls("unreachable", f"no answer from {url}: {reason}. Is the service running? (modelpress up)")


def _problem(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:  # a proxy's page
        return {"detail": response.text[:500].strip()}
    return body if isinstance(body, dict) else {}
