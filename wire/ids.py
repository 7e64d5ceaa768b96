"""Typed identifiers. Made only by `parse`, so a value of the type always has the documented form.

An identifier from outside that has another form is refused with `FormatError`; nothing is trimmed,
upper-cased or otherwise repaired here (pages that accept full-width input normalise before they call).
"""

from __future__ import annotations

import re
from typing import ClassVar, Self

import attrs

from wire.errors import FormatError

_ERROR_TEXT_CHARS_MAX = 80


@attrs.frozen(order=True)
class TextId:
    """One identifier; `text` is its only form on every wire, in SQL and in logs."""

    PATTERN: ClassVar[re.Pattern[str]]
    EXPECTED: ClassVar[str]

    text: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the identifier, or raise `FormatError` naming the expected form."""
        if not isinstance(text, str) or cls.PATTERN.fullmatch(text) is None:
            shown = ascii(text)[:_ERROR_TEXT_CHARS_MAX]
            message = f"{cls.__name__}: expected {cls.EXPECTED}, got {shown}"
            raise FormatError(message)
        return cls(text)

    def __str__(self) -> str:
        return self.text


@attrs.frozen(order=True)
class CustomerId(TextId):
    """お客さまID: the identifier of a line (X-01)."""

    PATTERN = re.compile(r"CAF[0-9]{10}")
    EXPECTED = "'CAF' and 10 digits"


@attrs.frozen(order=True)
class ContractId(TextId):
    """An Azukeru PRO contract."""

    PATTERN = re.compile(r"AZK[0-9]{10}")
    EXPECTED = "'AZK' and 10 digits"


@attrs.frozen(order=True)
class OperatorId(TextId):
    """A service operator (事業者) of Flets Joint (JNT-01); also a path segment of the image repository."""

    PATTERN = re.compile(r"[a-z][a-z0-9-]{1,30}[a-z0-9]")
    EXPECTED = "3 to 32 of a-z, 0-9, '-', starting with a letter"


@attrs.frozen(order=True)
class SoftwareId(TextId):
    """A software of one operator; unique inside that operator."""

    PATTERN = re.compile(r"[a-z][a-z0-9-]{0,30}[a-z0-9]")
    EXPECTED = "2 to 32 of a-z, 0-9, '-', starting with a letter"


@attrs.frozen(order=True)
class VersionText(TextId):
    """The version a person reads; order comes from the release number, never from this text."""

    PATTERN = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){1,3}(-[a-z0-9]{1,16})?")
    EXPECTED = "2 to 4 numbers joined by '.', optionally '-' and a word"


@attrs.frozen(order=True)
class GatewaySerial(TextId):
    """The serial number printed on a gateway and written in its contract."""

    PATTERN = re.compile(r"[A-Z0-9]{8,24}")
    EXPECTED = "8 to 24 of A-Z, 0-9"


@attrs.frozen(order=True)
class RandomId(TextId):
    """A 128-bit random identifier: sessions, generations, quotes, gateways, devices, paths."""

    PATTERN = re.compile(r"[0-9a-f]{32}")
    EXPECTED = "32 hex digits, lower case"

    @classmethod
    def from_bytes(cls, value: bytes) -> Self:
        """Make one from 16 bytes."""
        return cls.parse(value.hex())


@attrs.frozen(order=True)
class Sha256Hex(TextId):
    """A SHA-256 digest in hex: pack names, target hashes."""

    PATTERN = re.compile(r"[0-9a-f]{64}")
    EXPECTED = "64 hex digits, lower case"


@attrs.frozen(order=True)
class BackupSetName(TextId):
    """The name a NAS gives one set of sources that are backed up together."""

    PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
    EXPECTED = "1 to 64 of A-Z, a-z, 0-9, '_', '.', '-', not starting with a sign"
