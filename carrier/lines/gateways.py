"""Decide whether a key may be bound to a serial (design §4: never by first contact alone).

Rules
- The proof is HMAC-SHA256(device secret, signer key ‖ nonce): it shows the secret from manufacture, not presence.
- A second key for a serial changes nothing, whatever it proves: only the operator can unbind the first.
- A key serves one serial. Several gateways on a line are several enrolments.
- Pure: facts in, decision out. The refused gateway is told nothing of the reason.
"""

from __future__ import annotations

import hashlib
import hmac

import attrs

from carrier.lines.domain import Line
from carrier.lines.outcomes import EnrolmentRefused
from carrier.lines.ports import GatewayClaim


@attrs.frozen
class ContractFacts:
    """The running gateway contract of the claimed serial, and the key bound to it, if any."""

    contract_id: int
    line_id: int
    model: str
    maker: str
    secret: bytes = attrs.field(repr=False)
    bound_key: bytes | None = None


@attrs.frozen
class EnrolmentAllowed:
    """Bind the key (`first`), or it is bound already."""

    contract_id: int
    first: bool


def enrolment_proof(secret: bytes, key: bytes, nonce: bytes) -> bytes:
    """Return the 32-byte proof for a signer key (32 bytes) and statement nonce (16 bytes)."""
    return hmac.digest(secret, key + nonce, hashlib.sha256)


def decide_enrolment(
    on_line: Line, claim: GatewayClaim, contract: ContractFacts | None, *, key_in_use: int | None
) -> EnrolmentAllowed | EnrolmentRefused:
    """Return whether `claim`, made from `on_line`, binds its key.

    Args:
        on_line: the line of the socket's peer.
        claim: what the verified statement said.
        contract: the running contract of the serial.
        key_in_use: the contract to which the claimed key is bound now, if any.
    """
    if contract is None:
        return EnrolmentRefused("serial-unknown")
    proof = enrolment_proof(contract.secret, claim.key, claim.nonce)
    checks = (
        ("wrong-line", contract.line_id == on_line.line_id),
        ("wrong-proof", hmac.compare_digest(claim.proof, proof)),
        ("wrong-model", (claim.model, claim.maker) == (contract.model, contract.maker)),
        ("second-key", contract.bound_key in {None, claim.key}),
        ("key-of-another-serial", key_in_use in {None, contract.contract_id}),
    )
    for alarm, holds in checks:
        if not holds:
            return EnrolmentRefused(alarm)
    return EnrolmentAllowed(contract.contract_id, first=contract.bound_key is None)
