"""Errors of the wire formats: one root, one class per thing the peer got wrong."""

from __future__ import annotations


class WireError(Exception):
    """Root of everything `wire.parse_*`, `open_*` and `verify_*` raise for bytes from outside."""


class FormatError(WireError):
    """The bytes do not have the documented form. Text says what was expected and what came."""


class SignatureError(WireError):
    """A signature does not verify over the received bytes under the expected key and context."""


class UpgradeNeededError(WireError):
    """The version or a critical field is newer than this program knows; never treated as damage."""
