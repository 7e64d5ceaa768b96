"""What a person should do about a refusal: one sentence per code of protocols §2 (U7). Pure."""

from __future__ import annotations

from typing import Final

from nas_agent.ports import Refusal

_ADVICE: Final = {
    "clock": "this machine's clock and the service's differ; set the clock",
    "conflict": "another program uses it; wait for it to end, then run again",
    "device-revoked": "this NAS was locked or revoked; ask the contract's administrator, or `nas-agent pair` again",
    "draining": "the gateway is still passing packs on; run again later",
    "gateway-ended": "the gateway is no longer enrolled; see the gateway's page",
    "line-down": "the line is down; run again when it is up, what was sent is kept",
    "line-not-contract": "this line does not belong to the contract; back up from the contract's own line",
    "line-unknown": "the service does not know this line yet; try again later, then ask the carrier",
    "missing": "the other side lost data that was sent; run again, it will be sent anew",
    "no-ipv6-route": "the gateway has no IPv6 route to the service; check the line and the router",
    "not-found": "there is nothing of that name; see `nas-agent list`",
    "parent-mismatch": "another generation was made meanwhile; run again",
    "quota-full": "free capacity (fewer generations, excludes) or choose a larger plan",
    "refused": "not accepted; check pairing and enrolment with `nas-agent status`, then `nas-agent pair` again",
    "rejected": "see the reason on the gateway's page",
    "session-over": "the session ended; run again, what was sent is kept",
    "spool-full": "the gateway's spool is full; run again later, what was sent is kept",
    "stale-epoch": "the service expects newer keys of this device; `nas-agent init` a new state directory",
    "too-large": "upgrade nas-agent and the gateway",
    "unavailable": "run again later, what was sent is kept",
    "upgrade-needed": "upgrade nas-agent",
}


def explain_refusal(refusal: Refusal) -> str:
    """Return cause and next step for a person."""
    text = refusal.message.rstrip(".") or refusal.code
    if refusal.code == "quota-full" and refusal.limit_bytes is not None:
        text += f" ({_sizes(refusal)})"
    advice = _ADVICE.get(refusal.code)
    return f"{text} [{refusal.code}]" + (f": {advice}" if advice else "")


def _sizes(refusal: Refusal) -> str:
    known = (
        ("needed", refusal.needed_bytes),
        ("used", refusal.used_bytes),
        ("limit", refusal.limit_bytes),
    )
    return ", ".join(f"{name} {size_bytes} bytes" for name, size_bytes in known if size_bytes is not None)
