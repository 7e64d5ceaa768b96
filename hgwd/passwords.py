"""The admin password: scrypt at 8 MiB, the most this memory budget carries (N = 2^13, r = 8, p = 10, as OWASP lists).

File form, one line: `scrypt$N$r$p$salt$hash`, both base64. Parameters are read back within limits, so that a file from
another program cannot make hgwd allocate without bound.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from typing import Final

import attrs

from hgwd.errors import CorruptStateError

COST: Final = 1 << 13
BLOCK: Final = 8
PARALLEL: Final = 10
PASSWORD_CHARS_MIN: Final = 8
PASSWORD_CHARS_MAX: Final = 128
_MEMORY_BYTES_MAX: Final = 32 << 20
_PARALLEL_MAX: Final = 32
_FIELDS: Final = 6


@attrs.frozen
class PasswordHash:
    """A parsed password file."""

    cost: int
    block: int
    parallel: int
    salt: bytes = attrs.field(repr=False)
    digest: bytes = attrs.field(repr=False)

    def matches(self, password: str) -> bool:
        """Say whether `password` is the one. Blocking: about a tenth of a second of one core."""
        found = _derive(password, self.salt, self.cost, self.block, self.parallel)
        return hmac.compare_digest(found, self.digest)


def hash_password(password: str) -> str:
    """Return the line to write into the password file. Blocking."""
    salt = secrets.token_bytes(16)
    digest = _derive(password, salt, COST, BLOCK, PARALLEL)
    parts = (base64.b64encode(salt).decode(), base64.b64encode(digest).decode())
    return f"scrypt${COST}${BLOCK}${PARALLEL}${parts[0]}${parts[1]}"


def parse_password_hash(line: str) -> PasswordHash:
    """Return the hash in `line`; raise `CorruptStateError` for another form or parameters beyond the limits."""
    fields = line.strip().split("$")
    if len(fields) != _FIELDS or fields[0] != "scrypt":
        raise CorruptStateError("admin password file: expected scrypt$N$r$p$salt$hash")
    try:
        cost, block, parallel = (int(field) for field in fields[1:4])
        salt, digest = (base64.b64decode(field, validate=True) for field in fields[4:])
    except (ValueError, binascii.Error) as error:
        raise CorruptStateError(f"admin password file: {error}") from error
    good_cost = cost >= 2 and cost & (cost - 1) == 0 and 128 * cost * block <= _MEMORY_BYTES_MAX
    if not good_cost or not 1 <= parallel <= _PARALLEL_MAX or len(salt) < 16 or len(digest) != 32:
        raise CorruptStateError("admin password file: parameters outside their limits")
    return PasswordHash(cost, block, parallel, salt, digest)


def _derive(password: str, salt: bytes, cost: int, block: int, parallel: int) -> bytes:
    secret = password.encode("utf-8", "surrogatepass")
    return hashlib.scrypt(
        secret, salt=salt, n=cost, r=block, p=parallel, maxmem=2 * _MEMORY_BYTES_MAX, dklen=32
    )
