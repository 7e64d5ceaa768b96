"""What a package costs and whether it may be stored at all: sizes, tiers, class of change (JNT-03…07, 11…13).

Rules
- Sizes are measured on the bytes we hold, never taken from what the operator says.
- "Stored" counts all variants of the version (JNT-06); "footprint" is that of this variant.
- A refusal names the rule and a sentence an operator can act on.
- It does not do: charging (carrier/ledger), signatures (services/submit.py).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import attrs

from carrier.ledger.rules import tariff_on, tier_of
from carrier.ledger.tables import JointPrices, Tier
from deliver.domain.tables import SERIES_LIMITS
from wire.director import SoftwareName, TargetPath
from wire.ids import OperatorId, SoftwareId, VersionText
from wire.joint import Quote
from wire.package import Manifest


@attrs.frozen
class Refused:
    """Not accepted. `code` is kebab-case for programs, `rule` the requirement, `message` for people."""

    code: str
    rule: str
    message: str


@attrs.frozen
class KnownVariant:
    """A registered file of the same software."""

    target_path: str
    version: str
    release: int
    sha256: str
    stored_bytes: int


@attrs.frozen
class Registered:
    """Exactly these bytes are registered already: nothing to do, nothing to pay."""

    target_path: str


@attrs.frozen
class Measured:
    """A package as received: what its manifest says and what we measured."""

    manifest: Manifest
    sha256: str
    stored_bytes: int
    footprint_bytes: int

    @property
    def target_path(self) -> str:
        """Where the package will stand in the image repository."""
        manifest = self.manifest
        name = SoftwareName(OperatorId(manifest.operator), SoftwareId(manifest.software))
        return TargetPath(name, VersionText(manifest.version), manifest.variant).text


def decide_quote(
    package: Measured, known: Sequence[KnownVariant], change: str, *, quote_id: str, date: dt.date
) -> Quote | Registered | Refused:
    """Return the price of storing and delivering `package`, or why it is refused.

    Args:
        package: measured, its manifest parsed and matching the statement.
        known: every registered variant of the same software.
        change: the class the operator confirmed, "new" or "change" (JNT-13).
        quote_id: random ID of the quote.
        date: JST date of the request; decides the tariff.
    """
    same = [variant for variant in known if variant.target_path == package.target_path]
    if same and same[0].sha256 == package.sha256:
        return Registered(package.target_path)
    refusal = _check_history(package, known, change) or _check_texts(package)
    if refusal is not None:
        return refusal
    stored_bytes = package.stored_bytes + sum(
        variant.stored_bytes for variant in known if variant.version == package.manifest.version
    )
    prices = tariff_on(date).joint
    menu = decide_tier("size-stored", "JNT-05", "stored file", prices.menus, stored_bytes)
    plan = decide_tier("size-footprint", "JNT-05", "size per target", prices.plans, package.footprint_bytes)
    if isinstance(menu, Refused):
        return menu
    if isinstance(plan, Refused):
        return plan
    refusal = _check_models(package)
    if refusal is not None:
        return refusal
    return Quote(
        quote_id=quote_id,
        target_path=package.target_path,
        stored_bytes=stored_bytes,
        footprint_bytes=package.footprint_bytes,
        menu=menu.name,
        plan=plan.name,
        basic_fee_yen=menu.fee_yen,
        target_fee_yen=plan.fee_yen,
        one_off_yen=one_off_yen(prices, change),
        change=change,
        rule="JNT-12" if change == "new" else "JNT-13",
    )


def decide_tier(code: str, rule: str, what: str, tiers: tuple[Tier, ...], size_bytes: int) -> Tier | Refused:
    """Return the tier of a size, or the refusal that names the bound (JNT-05: bounds are strict)."""
    tier = tier_of(tiers, size_bytes)
    if tier is not None:
        return tier
    bound = tiers[-1].below_bytes
    message = f"{what}: expected 1 to {bound - 1} bytes, got {size_bytes}: no tier holds it"
    return Refused(code, rule, message)


def one_off_yen(prices: JointPrices, change: str) -> int:
    """Return the one-off fees of a work of one software (JNT-12): new 29,480, change 26,400, other 5,500."""
    match change:
        case "new":
            return prices.contract_fee_yen + prices.base_work_yen + prices.new_work_yen
        case "change":
            return prices.base_work_yen + prices.change_work_yen
        case "other":
            return prices.base_work_yen + prices.other_work_yen
        case _:
            raise ValueError(f"change: expected new, change or other, got {change!r}")


def _check_history(package: Measured, known: Sequence[KnownVariant], change: str) -> Refused | None:
    manifest = package.manifest
    if any(variant.target_path == package.target_path for variant in known):
        message = f"{package.target_path} is registered with other bytes: give the change a new version"
        return Refused("conflict", "JNT-50", message)
    expected = "change" if known else "new"
    if change != expected:
        message = f"class of work: this is {expected!r} for {manifest.software}, the order says {change!r}"
        return Refused("wrong-change", "JNT-13", message)
    released = {variant.release for variant in known if variant.version == manifest.version}
    others = [variant.release for variant in known if variant.version != manifest.version]
    if others and manifest.release <= max(others):
        message = f"release: expected above {max(others)}, got {manifest.release}: releases only rise"
        return Refused("release-not-higher", "JNT-50", message)
    if released and released != {manifest.release}:
        message = f"release: variants of {manifest.version} have {max(released)}, got {manifest.release}"
        return Refused("release-not-higher", "JNT-50", message)
    return None


def _check_texts(package: Measured) -> Refused | None:
    """Customers must be shown content and price (JNT-32)."""
    texts = {"description": package.manifest.description, "price_text": package.manifest.price_text}
    missing = [name for name, text in texts.items() if not text.strip()]
    if missing:
        message = f"manifest: {' and '.join(missing)}: expected text that customers are shown, got none"
        return Refused("text-missing", "JNT-32", message)
    return None


def _check_models(package: Measured) -> Refused | None:
    """Check the per-model limit table (JNT-07)."""
    memory_bytes = package.manifest.resources.memory_bytes
    for series in package.manifest.series:
        limit = SERIES_LIMITS[series]
        if package.footprint_bytes > limit.footprint_bytes_max or memory_bytes > limit.memory_bytes_max:
            message = (
                f"{series} takes at most {limit.footprint_bytes_max} bytes installed and {limit.memory_bytes_max} bytes "
                f"of memory, got {package.footprint_bytes} and {memory_bytes}"
            )
            return Refused("size-model", "JNT-07", message)
    return None
