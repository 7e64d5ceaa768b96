"""What the line context needs of a database: whole transactions with typed outcomes.

Every method is one transaction: after a crash it has happened whole or not at all. None retries. Each may raise
`UnavailableError`. Methods that change what authentication sees raise the change counter in the same transaction.
"""

from __future__ import annotations

from typing import Protocol

import attrs

from carrier.lines import outcomes as out
from carrier.lines.addresses import Prefix
from carrier.lines.domain import Line, LineMap
from carrier.lines.tables import AccessType, Region
from wire.ids import CustomerId, GatewaySerial, RandomId


@attrs.frozen
class GatewayClaim:
    """What a gateway says of itself when it enrols, after its statement was verified."""

    serial: GatewaySerial
    model: str
    maker: str
    proof: bytes
    key: bytes
    nonce: bytes


class LineStore(Protocol):
    """Lines, prefixes, access keys, gateway contracts and enrolments."""

    def read_change(self) -> int:
        """Return the change counter; cheap, called twice a second."""
        ...

    def read_map(self, now_s: int) -> LineMap:
        """Return counter and every row that is valid now or later, from one consistent read."""
        ...

    def add_line(
        self, customer_id: CustomerId, region: Region, access_type: AccessType, now_s: int
    ) -> Line | out.CustomerIdTaken:
        """Open a line. Not idempotent: the second call answers `CustomerIdTaken`."""
        ...

    def find_line(self, customer_id: CustomerId) -> Line | None:
        """Return the running line of a customer ID."""
        ...

    def add_prefix(
        self, customer_id: CustomerId, prefix: Prefix, valid_from: int, valid_to: int, *, quarantine_s: int
    ) -> out.PrefixAdded | out.PrefixOverlaps | out.PrefixQuarantined | out.CustomerUnknown:
        """Give a prefix to a line; overlap and quarantine are checked in the same transaction as the insert."""
        ...

    def end_prefix(
        self, customer_id: CustomerId, prefix: Prefix, at: int
    ) -> out.PrefixEnded | out.PrefixUnknown:
        """End the line's row of this prefix; idempotent."""
        ...

    def end_line(self, customer_id: CustomerId, at: int) -> out.LineEnded | out.CustomerUnknown:
        """End a line with all its prefixes and gateway contracts."""
        ...

    def set_access_key(self, customer_id: CustomerId, key_hash: str) -> bool:
        """Store the hash of a new access key and clear its lock; False when the line is unknown."""
        ...

    def read_access_key(self, line_id: int) -> tuple[str, int, int] | None:
        """Return (hash, wrong tries, locked until) of a line's access key."""
        ...

    def count_access_key(self, line_id: int, *, ok: bool, now_s: int) -> None:
        """Record a try: success clears, the last allowed failure locks (LIN-16)."""
        ...

    def add_gateway_contract(
        self,
        customer_id: CustomerId,
        serial: GatewaySerial,
        model: str,
        maker: str,
        secret: bytes,
        now_s: int,
    ) -> out.GatewayContracted | out.SerialTaken | out.CustomerUnknown:
        """Open a gateway contract on a line; several per line are allowed."""
        ...

    def end_gateway_contract(
        self, serial: GatewaySerial, at: int
    ) -> out.GatewayContractEnded | out.SerialUnknown:
        """End the running contract of a serial; its enrolment ends with it."""
        ...

    def enrol_gateway(
        self, line: Line, claim: GatewayClaim, gateway: RandomId, director_path: RandomId, now_s: int
    ) -> out.GatewayEnrolled | out.EnrolmentRefused:
        """Bind a key to a serial, or write an alarm row and change nothing else (design §4)."""
        ...

    def forget_gateway_key(self, serial: GatewaySerial, now_s: int) -> bool:
        """Unbind the key of a serial so that the next enrolment binds a new one (operator's decision only)."""
        ...

    def find_gateway(self, key: bytes, now_s: int) -> out.GatewayEnrolled | None:
        """Return the enrolment of a key whose contract runs now."""
        ...

    def list_gateways(self, now_s: int) -> tuple[out.GatewayEnrolled, ...]:
        """Return every enrolment whose contract runs now, by serial."""
        ...

    def list_alarms(self) -> tuple[out.GatewayAlarm, ...]:
        """Return all alarm rows, newest first."""
        ...
