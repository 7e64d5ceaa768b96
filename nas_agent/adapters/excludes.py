"""Which paths a backup leaves out: patterns as in .gitignore, on bytes.

`*` and `?` stay inside one name, `**` spans directories, `[…]` is a class. A pattern with a `/` in front or inside is
bound to the root of the source, another matches at any depth; a trailing `/` means directories only; `!` takes a
later path back in. The last pattern that matches decides. What lies below an excluded directory is not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import attrs

PATTERNS_MAX = 1000


@attrs.frozen
class _Rule:
    pattern: re.Pattern[bytes]
    directories_only: bool
    excludes: bool


class Excludes:
    """A compiled list of patterns; an empty list excludes nothing."""

    def __init__(self, patterns: Iterable[str]) -> None:
        """Compile; raises `ValueError` naming the pattern that cannot be read."""
        self._rules = [_compile(text) for text in patterns]
        if len(self._rules) > PATTERNS_MAX:
            message = f"exclude patterns: expected at most {PATTERNS_MAX}, got {len(self._rules)}"
            raise ValueError(message)

    def excludes(self, path: bytes, *, is_directory: bool) -> bool:
        """Tell whether the entry at `path` (relative to the source's root) is left out."""
        for rule in reversed(self._rules):
            if rule.directories_only and not is_directory:
                continue
            if rule.pattern.fullmatch(path):
                return rule.excludes
        return False


def _compile(text: str) -> _Rule:
    body = text.removeprefix("!")
    directories_only = body.endswith("/")
    core = body.rstrip("/")
    if not core:
        message = f"exclude pattern {text!r}: expected a name or a path"
        raise ValueError(message)
    anchored = "/" in core
    raw = core.lstrip("/").encode("utf-8", "surrogateescape")
    prefix = b"" if anchored else b"(?:.*/)?"
    try:
        pattern = re.compile(prefix + _translate(raw), re.DOTALL)
    except re.error as error:
        message = f"exclude pattern {text!r}: {error}"
        raise ValueError(message) from error
    return _Rule(pattern, directories_only, not text.startswith("!"))


_TOKEN = re.compile(rb"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)
_WILD = {b"**/": b"(?:.*/)?", b"**": b".*", b"*": b"[^/]*", b"?": b"[^/]"}


def _translate(raw: bytes) -> bytes:
    return b"".join(_WILD.get(token) or _literal(token) for token in _TOKEN.findall(raw))


def _literal(token: bytes) -> bytes:
    if len(token) == 1:
        return re.escape(token)
    negated, members = token[1:2] == b"!", token[1:-1].lstrip(b"!")
    return b"[" + (b"^" if negated else b"") + members.replace(b"\\", b"\\\\") + b"]"
