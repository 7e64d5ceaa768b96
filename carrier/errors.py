"""Errors of the carrier side: faults only; expected refusals are returned as outcome types.

Rules: one root; each kind is also the runtime's kind of that name, so that the HTTP edge answers it without knowing
this package; text names what was expected and what came.
"""

from __future__ import annotations

from runtime import errors


class CarrierError(Exception):
    """Root of everything carrier code raises on purpose."""


class LocalCarrierError(CarrierError, errors.LocalError):
    """Our own misuse: wrong URL, wrong argument, schema of another version."""


class CorruptDataError(CarrierError, errors.CorruptDataError):
    """Stored data is not what was stored. Never retried; the message names object and expectation."""


class UnavailableError(CarrierError, errors.Unavailable):
    """Database or blob store cannot be reached now; trying again later may help."""
