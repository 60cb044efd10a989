"""`Prefer: wait=n` (RFC 7240): how long an answer may be held back until there is news."""

import re
from typing import Annotated

from fastapi import Depends, Header

MAX_SECONDS = 60.0


async def wait_seconds(
    prefer: Annotated[str, Header(description="`wait=n` waits for news, up to n seconds (60 at most)")] = "",
) -> float:
    """A preference that cannot be read is ignored, as the RFC has it."""
    found = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6})", prefer, re.IGNORECASE)
    return min(float(found[1]), MAX_SECONDS) if found else 0.0


Wait = Annotated[float, Depends(wait_seconds)]
