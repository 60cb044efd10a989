"""API keys: how they are made and how they are stored. A key is shown once; only its HMAC is kept."""

import hmac
import secrets
import zlib
from string import ascii_letters, digits

BASE62 = digits + ascii_letters
MARK = "mp_"  # says to people, and to scanners for leaked secrets, what it is
RANDOM = 37  # characters of base62: 220 bits
CHECK = 6  # CRC-32 of the random part: a mistyped key is told from an unknown one without the database


def checksum(body: str) -> str:
    number, out = zlib.crc32(body.encode()), ""
    for _ in range(CHECK):
        number, digit = divmod(number, 62)
        out = BASE62[digit] + out
    return out


def new_key() -> str:
    body = "".join(secrets.choice(BASE62) for _ in range(RANDOM))
    return MARK + body + checksum(body)


def digest(secret: str, key: str) -> bytes:
    """HMAC-SHA256, 32 bytes. No slow hash: 220 random bits cannot be guessed."""
    return hmac.digest(secret.encode(), key.encode(), "sha256")


def prefix(key: str) -> str:
    """What lists show of a key."""
    return key[: len(MARK) + 6]
