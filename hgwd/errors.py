"""Errors of the gateway daemon: one root. Refusals that are expected are returned, not raised (style §7)."""

from __future__ import annotations


class HgwdError(Exception):
    """Root of everything hgwd raises on purpose."""


class CorruptStateError(HgwdError):
    """A file of our own has content of another form: never retried, never replaced silently, always an alarm."""


class LocalUseError(HgwdError):
    """The caller used hgwd wrongly (bad argument, second start on the same state directory)."""


class SpoolFailedError(HgwdError):
    """The flash refused an fsync or a write: nothing more is accepted until the next start (L: never retry an fsync)."""
