"""Signed JSON documents of a vault: verify over the received bytes, check version and critical fields, then parse.

Rules: an unknown version or critical field is "upgrade needed", never damage; other unknown fields are accepted.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from wire.errors import FormatError, UpgradeNeededError

VERSION: Final = 0
"""v0-draft of vault-format.md."""

_T = TypeVar("_T", bound=msgspec.Struct)


class _Preamble(msgspec.Struct, frozen=True):
    v: int
    critical: tuple[str, ...] = ()


def decode_document(what: str, payload: bytes, kind: type[_T]) -> _T:
    """Return the document in `payload`, whose signature the caller has checked.

    Raises `UpgradeNeededError` for another version or an unknown critical field, `FormatError` for any other form.
    """
    try:
        preamble = msgspec.json.decode(payload, type=_Preamble)
        check_version(what, preamble.v)
        unknown = sorted(set(preamble.critical) - set(kind.__struct_fields__))
        if unknown:
            message = f"{what}: unknown critical field {ascii(unknown[0])[:80]}: upgrade needed"
            raise UpgradeNeededError(message)
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        message = f"{what}: {error}"
        raise FormatError(message) from error


def check_version(what: str, version: int) -> None:
    """Raise `UpgradeNeededError` unless `version` is the one this program writes."""
    if version != VERSION:
        message = f"{what}: expected version {VERSION}, got {version}: upgrade needed"
        raise UpgradeNeededError(message)
