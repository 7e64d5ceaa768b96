"""May this line receive this software: JNT-20, -21, -22 as one pure decision.

Rules: facts in, decision out; every refusal names its rule and a sentence a provider can pass on (JNT-31).
It does not do: JNT-23 and JNT-24 (telephone adapters, migrated lines): the registry holds no such facts yet.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from carrier.lines.domain import Line
from deliver.domain.pricing import Refused
from deliver.domain.tables import ELIGIBLE_ACCESS
from wire.director import TargetCustom
from wire.package import GATEWAY_SERIES


@attrs.frozen
class GatewayFacts:
    """A gateway under a running contract on the line."""

    serial: str
    series: str
    maker: str


@attrs.frozen
class VariantFacts:
    """A variant of the version to deliver."""

    target_path: str
    custom: TargetCustom


@attrs.frozen
class Eligible:
    """The line may receive it; the variant of its first fitting gateway decides the plan (JNT-06)."""

    variant: VariantFacts


def decide_eligibility(
    line: Line | None, gateways: Sequence[GatewayFacts], variants: Sequence[VariantFacts]
) -> Eligible | Refused:
    """Return whether a line may be a delivery target.

    Args:
        line: the running line of the customer ID, None when there is none.
        gateways: its gateways whose contract runs and that have enrolled.
        variants: the variants of the version.
    """
    if line is None:
        return Refused("line-unknown", "JNT-20", "no running line has this customer ID")
    if line.access_type not in ELIGIBLE_ACCESS:
        message = (
            f"the line is {line.access_type}: expected Hikari Light, Hikari Next or a collaboration line"
        )
        return Refused("line-type", "JNT-20", message)
    if not gateways:
        message = "the line has no gateway under a running contract that has enrolled"
        return Refused("no-gateway", "JNT-22", message)
    known = [gateway for gateway in gateways if gateway.series in GATEWAY_SERIES]
    if not known:
        message = f"the gateway is a {gateways[0].series}: expected one of {', '.join(GATEWAY_SERIES)}"
        return Refused("gateway-series", "JNT-21", message)
    for gateway in known:
        variant = variant_for(gateway.series, gateway.maker, variants)
        if variant is not None:
            return Eligible(variant)
    message = f"no variant of this version is for {known[0].series} of maker {known[0].maker}"
    return Refused("no-variant", "JNT-07", message)


def variant_for(series: str, maker: str, variants: Sequence[VariantFacts]) -> VariantFacts | None:
    """Return the variant for a gateway, None when the version has none."""
    return next((item for item in variants if item.custom.fits(series=series, maker=maker)), None)
