"""Open a statement from a request and turn its faults into answers (protocols.md §1, §2)."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from runtime.http import Response, error_response
from wire.errors import UpgradeNeededError, WireError
from wire.statement import Audience, Kind, Statement, StatementClockError, open_statement

BodyT = TypeVar("BodyT", bound=msgspec.Struct)


def opened(blob: bytes, kind: Kind, body_type: type[BodyT], now_s: float) -> Statement[BodyT] | Response:
    """Return the verified statement, or the answer: 401 `clock`, 426 `upgrade-needed`, else 403 `refused`."""
    try:
        return open_statement(blob, kind=kind, audience=Audience.JOINT, now_s=now_s, body_type=body_type)
    except StatementClockError as error:
        return error_response(401, "clock", str(error), server_time=int(now_s))
    except UpgradeNeededError as error:
        return error_response(426, "upgrade-needed", str(error))
    except WireError:
        return error_response(403, "refused", "not allowed")
