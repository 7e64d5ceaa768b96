"""Key files: one secret per file, mode 0600, in a directory for offline keys and another for online keys.

Rules
- The two directories are never the same; a program that serves opens `online` only (thief table, design §5.2).
- A key file is never replaced: making a key that exists is refused.
- It does not do: hardware tokens, passphrases.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

import attrs
import msgspec

from runtime.errors import LocalError
from runtime.files import load_secret, make_dirs, write_atomic
from wire.signing import SigningKey, generate_key

OFFLINE: Final = "offline"
ONLINE: Final = "online"
KEY_SUFFIX: Final = ".key"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,47}")
_Hex32 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class _KeyFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    v: int
    role: str
    seed: _Hex32
    public: _Hex32


@attrs.frozen
class KeyStore:
    """The keys of one directory, by role name (`root-1`, `snapshot`, …)."""

    directory: Path

    def create(self, role: str) -> SigningKey:
        """Make a key and its file; raises `LocalError` when the file exists."""
        make_dirs(self.directory, mode=0o700)
        return create_key_file(self._path(role), role)

    def load(self, role: str) -> SigningKey:
        """Return the key of a role; raises `LocalError` when it is missing, damaged or readable by others."""
        return load_key_file(self._path(role))

    def _path(self, role: str) -> Path:
        if _NAME.fullmatch(role) is None:
            raise LocalError(f"key name: expected 1 to 48 of a-z, 0-9, '-', got {ascii(role)[:60]}")
        return self.directory / f"{role}{KEY_SUFFIX}"


def create_key_file(path: Path, role: str) -> SigningKey:
    """Write a fresh key to `path` (mode 0600) and return it; raises `LocalError` when the file exists."""
    if path.exists():
        raise LocalError(f"key file {path}: exists already, a key is never replaced")
    key = generate_key()
    content = _KeyFile(v=1, role=role, seed=key.seed.hex(), public=key.public.hex())
    write_atomic(path, msgspec.json.encode(content) + b"\n", mode=0o600)
    return key


def load_key_file(path: Path) -> SigningKey:
    """Return the key in `path`; raises `LocalError` when it is missing, damaged or readable by others."""
    try:
        content = msgspec.json.decode(load_secret(path), type=_KeyFile)
    except msgspec.MsgspecError as error:
        raise LocalError(
            f"key file {path}: expected version, role, seed and public, got other content"
        ) from error
    key = SigningKey(bytes.fromhex(content.seed))
    if content.v != 1 or key.public.hex() != content.public:
        raise LocalError(f"key file {path}: seed and public half do not belong together")
    return key
