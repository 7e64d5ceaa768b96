"""What the line registry can answer: frozen outcome types, one per case (style: refusals are returned)."""

from __future__ import annotations

import attrs

from carrier.lines.addresses import Prefix
from wire.ids import CustomerId, GatewaySerial, RandomId


@attrs.frozen
class CustomerUnknown:
    """No running line has this customer ID."""

    customer_id: CustomerId


@attrs.frozen
class CustomerIdTaken:
    """A line with this customer ID exists, running or ended: IDs are never given twice."""

    customer_id: CustomerId


@attrs.frozen
class PrefixAdded:
    """The row stands."""

    prefix: Prefix
    valid_from: int


@attrs.frozen
class PrefixOverlaps:
    """Another row overlaps in prefix and time; nothing was changed (L5)."""

    prefix: Prefix
    other: Prefix
    other_customer_id: CustomerId


@attrs.frozen
class PrefixQuarantined:
    """The prefix was another customer's until lately; free from `free_at` on (L3)."""

    prefix: Prefix
    free_at: int


@attrs.frozen
class PrefixUnknown:
    """The line holds no such prefix at that time."""

    prefix: Prefix


@attrs.frozen
class PrefixEnded:
    """The row ends at `at`; ending it again answers the same."""

    prefix: Prefix
    at: int


@attrs.frozen
class LineEnded:
    """Line, its prefixes and its gateway contracts end at `at`."""

    customer_id: CustomerId
    at: int
    prefixes: int
    gateway_contracts: int


@attrs.frozen
class GatewayContracted:
    """A gateway contract stands; enrolment is possible from now on."""

    serial: GatewaySerial
    customer_id: CustomerId


@attrs.frozen
class SerialTaken:
    """A running contract has this serial already."""

    serial: GatewaySerial


@attrs.frozen
class SerialUnknown:
    """No running contract has this serial."""

    serial: GatewaySerial


@attrs.frozen
class GatewayContractEnded:
    """The contract ends at `at`: no delivery, no forwarding after it; stored data stays (X table)."""

    serial: GatewaySerial
    at: int


@attrs.frozen
class GatewayEnrolled:
    """The key is bound to the serial. `director_path` is random and changes with every new binding."""

    gateway: RandomId
    director_path: RandomId
    serial: GatewaySerial
    model: str
    maker: str
    customer_id: CustomerId
    key: bytes
    first: bool


@attrs.frozen
class EnrolmentRefused:
    """Nothing was bound; `alarm` names the row an operator sees. The gateway learns only "refused"."""

    alarm: str


@attrs.frozen
class GatewayAlarm:
    """Attempts of one kind from one line against one serial, counted."""

    customer_id: CustomerId
    serial: str
    kind: str
    count: int
    first_at: int
    last_at: int
    last_key: bytes
