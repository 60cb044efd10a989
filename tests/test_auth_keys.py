import re

from app.auth_keys import checksum, digest, new_key, prefix


def test_a_key_is_random_and_carries_its_own_checksum():
    key, other = new_key(), new_key()
    assert re.fullmatch(r"mp_[0-9A-Za-z]{43}", key)
    assert key != other
    assert key.endswith(checksum(key[3:-6]))
    assert not key.endswith(checksum("x" + key[4:-6] + "x"))
    assert key.startswith(prefix(key))
    assert len(prefix(key)) == 9


def test_the_digest_depends_on_key_and_secret():
    digests = {digest("secret", "mp_a"), digest("secret", "mp_b"), digest("another", "mp_a")}
    assert {len(one) for one in digests} == {32}
    assert len(digests) == 3
    assert digest("secret", "mp_a") in digests
