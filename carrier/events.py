"""Contract events of a line: one event, all effects that matter here (X table "Contract events").

Rules
- Each effect is one transaction of its context, in an order that fails closed: authentication stops first.
- A crash between two leaves the line refused and something still to do; the same event again completes it.
- Device authentication over other lines, ledger, portal consents: their contexts act when they exist.
"""

from __future__ import annotations

import attrs

from carrier.lines import outcomes as line_out
from carrier.lines.addresses import Prefix
from carrier.lines.services import LineRegistry
from carrier.storage.admin import StorageAdmin
from wire.ids import CustomerId, GatewaySerial


@attrs.frozen
class EventDone:
    """What the event ended."""

    prefixes: int = 0
    gateway_contracts: int = 0
    storage_lines: int = 0


@attrs.frozen
class ContractEvents:
    """The events an operator records."""

    registry: LineRegistry
    storage: StorageAdmin

    def terminate_line(self, customer_id: CustomerId) -> EventDone:
        """Line terminated, or its customer ID changed: line authentication refuses at once, delivery ends.

        1. Prefixes, gateway contracts and the line end in one transaction. 2. Storage contracts lose the line; their
        data stays. Idempotent.
        """
        ended = self.registry.end_line(customer_id)
        unbound = self.storage.unbind_line(customer_id)
        if isinstance(ended, line_out.CustomerUnknown):
            return EventDone(storage_lines=unbound)
        return EventDone(ended.prefixes, ended.gateway_contracts, unbound)

    def transfer_line(self, customer_id: CustomerId, serials: tuple[GatewaySerial, ...]) -> EventDone:
        """Line handed to another owner: the new owner must not reach the old one's data.

        1. Storage contracts lose the line. 2. The old owner's gateway contracts end. The line and its prefixes go on.
        """
        unbound = self.storage.unbind_line(customer_id)
        ends = [self.registry.end_gateway_contract(serial) for serial in serials]
        return EventDone(
            gateway_contracts=sum(isinstance(end, line_out.GatewayContractEnded) for end in ends),
            storage_lines=unbound,
        )

    def renumber(
        self, customer_id: CustomerId, old: Prefix, new: Prefix
    ) -> (
        line_out.PrefixAdded | line_out.PrefixOverlaps | line_out.PrefixQuarantined | line_out.CustomerUnknown
    ):
        """Prefix renumbered on the same line: the new one works, the old one is refused at once (L4).

        1. The new prefix is added; if that is refused, nothing changes. 2. The old one ends.
        For a change-over with both valid, use `LineRegistry.add_prefix` and `end_prefix` apart.
        """
        added = self.registry.add_prefix(customer_id, new)
        if isinstance(added, line_out.PrefixAdded):
            self.registry.end_prefix(customer_id, old)
        return added

    def reassign_prefix(
        self, prefix: Prefix, old_owner: CustomerId, new_owner: CustomerId
    ) -> (
        line_out.PrefixAdded | line_out.PrefixOverlaps | line_out.PrefixQuarantined | line_out.CustomerUnknown
    ):
        """Prefix given to another customer: the old binding ends now, the new one starts after quarantine (L3)."""
        self.registry.end_prefix(old_owner, prefix)
        start = int(self.registry.clock.now_s()) + self.registry.quarantine_s
        return self.registry.add_prefix(new_owner, prefix, valid_from=start)
