"""The recovery sheet: the contract's secret on paper, for the day when NAS and passphrase are both gone.

Base32 in groups of four with a check group per line, so that a mistyped line is named. Whoever holds the sheet can
read every backup of the contract; the sheet says so itself.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

from nas_agent.keys.contract import SECRET_BYTES, ContractSecret
from nas_agent.keys.errors import KeyFileError

_LINES = 4
_LINE_BYTES = SECRET_BYTES // _LINES
_CHECK_CHARS = 4
_LINE = re.compile(r"^\s*([1-4])\s*:\s*([A-Za-z2-7 ]+)$", re.MULTILINE)

_TEXT = """\
RECOVERY SHEET / 復旧シート                                      nas-agent, version 1

Whoever holds this sheet can read every backup of this contract. Keep it like a seal:
print it, put it in a safe place away from the NAS, and delete the file.
このシートを持つ人は、この契約のすべてのバックアップを読めます。印刷して安全な場所に保管し、
ファイルは削除してください。

Contract key fingerprint / 契約鍵の指紋
  {fingerprint}

Secret / 秘密鍵 (the last group of each line is a check)
{lines}

To use it:  nas-agent key recover --sheet FILE
"""


def recovery_sheet(contract: ContractSecret) -> str:
    """Return the text of the sheet."""
    lines = (
        f"  {number + 1}: {_groups(_encode_line(number, contract.secret[number * _LINE_BYTES : (number + 1) * _LINE_BYTES]))}"
        for number in range(_LINES)
    )
    return _TEXT.format(fingerprint=contract.public.fingerprint, lines="\n".join(lines))


def parse_sheet(text: str) -> ContractSecret:
    """Read a sheet, or any text that holds its four numbered lines; `KeyFileError` names a line that is wrong."""
    found = {int(number): body.replace(" ", "").upper() for number, body in _LINE.findall(text)}
    secret = b""
    for number in range(_LINES):
        if number + 1 not in found:
            raise KeyFileError(f"recovery sheet: line {number + 1} of {_LINES} is missing")
        secret += _decode_line(number, found[number + 1])
    return ContractSecret(secret)


def _encode_line(number: int, part: bytes) -> str:
    return base64.b32encode(part).decode().rstrip("=") + _check(number, part)


def _decode_line(number: int, text: str) -> bytes:
    body, check = text[:-_CHECK_CHARS], text[-_CHECK_CHARS:]
    try:
        part = base64.b32decode(body + "=" * (-len(body) % 8))
    except binascii.Error:
        part = b""
    if len(part) != _LINE_BYTES or _check(number, part) != check:
        raise KeyFileError(
            f"recovery sheet: line {number + 1} has a typing mistake (its check group differs)"
        )
    return part


def _check(number: int, part: bytes) -> str:
    digest = hashlib.sha256(b"hgw/sheet/1" + bytes([number]) + part).digest()
    return base64.b32encode(digest[:5]).decode()[:_CHECK_CHARS]


def _groups(text: str) -> str:
    return " ".join(text[i : i + 4] for i in range(0, len(text), 4))
