"""The bill of one payer and month: a pure function of events, tariff and calendar (X-10).

Rules
- Same events, same bytes: lines are sorted, nothing depends on when or how often the function runs.
- Order is the ledger's, never the clock's: two events of one second, or a clock set back, change nothing.
- Prices include tax; per rate the tax is rounded once on the sum of the rate, down (X-12).
- Monthly lines follow `rules.py`; one-off lines stand in the JST month of their event (JNT-11, JNT-12).
- It does not do: reading or writing anything, deciding who may register what.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import msgspec

from carrier.ledger import events as ev
from carrier.ledger.rules import Month, Run, charged_value, jst_date, tariff_on, tax_percent_on, tier_of
from carrier.ledger.tables import CALENDAR_VERSION, Tariff, Tier
from runtime.errors import CorruptDataError


class InvoiceLine(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One line; `amount_yen` = `quantity` × `unit_yen`, tax included."""

    service: str
    code: str
    subject: str
    rule: str
    quantity: int
    unit_yen: int
    amount_yen: int
    tax_percent: int


class TaxLine(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """The sum of one rate and the tax inside it."""

    tax_percent: int
    total_yen: int
    tax_yen: int


class Invoice(msgspec.Struct, frozen=True, kw_only=True):
    """The bill. `encode` gives its one byte form."""

    payer: str
    month: str
    tariff: str
    calendar: str
    lines: tuple[InvoiceLine, ...]
    taxes: tuple[TaxLine, ...]
    total_yen: int

    def encode(self) -> bytes:
        """Return the byte form that is stored and compared."""
        return msgspec.json.encode(self)


class Posting(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the double entry; exactly one of debit and credit is above 0."""

    account: str
    debit_yen: int = 0
    credit_yen: int = 0


def bill(events: Iterable[ev.Event], month: Month, payer: str) -> Invoice:
    """Return the invoice of `payer` for `month` from all events up to now, in ledger order.

    Raises `CorruptDataError` when events contradict each other (a change of what was never registered).
    """
    own = [event for event in events if event.payer == payer]
    tariff = tariff_on(month.first_day)
    lines = [
        *_joint_monthly(own, month, tariff),
        *_storage_monthly(own, month, tariff),
        *_joint_once(own, month),
    ]
    lines = sorted(line for line in lines if line.amount_yen)
    taxes = tuple(_tax_lines(lines))
    return Invoice(
        payer=payer,
        month=str(month),
        tariff=tariff.version,
        calendar=CALENDAR_VERSION,
        lines=tuple(lines),
        taxes=taxes,
        total_yen=sum(line.amount_yen for line in lines),
    )


def postings(invoice: Invoice) -> tuple[Posting, ...]:
    """Return the balanced rows of an invoice: receivable against sales, then the tax out of the sales."""
    if not invoice.total_yen:
        return ()
    sales: dict[str, int] = defaultdict(int)
    for line in invoice.lines:
        sales[line.service] += line.amount_yen
    rows = [Posting(account=f"receivable/{invoice.payer}", debit_yen=invoice.total_yen)]
    rows += [
        Posting(account=f"sales/{service}", credit_yen=amount) for service, amount in sorted(sales.items())
    ]
    for tax in invoice.taxes:
        if tax.tax_yen:
            rows.append(Posting(account=f"tax-in-sales/{tax.tax_percent}", debit_yen=tax.tax_yen))
            rows.append(Posting(account=f"tax-payable/{tax.tax_percent}", credit_yen=tax.tax_yen))
    return tuple(rows)


def _tax_lines(lines: Iterable[InvoiceLine]) -> Iterator[TaxLine]:
    totals: dict[int, int] = defaultdict(int)
    for line in lines:
        totals[line.tax_percent] += line.amount_yen
    for percent, total in sorted(totals.items()):
        yield TaxLine(tax_percent=percent, total_yen=total, tax_yen=total * percent // (100 + percent))


def _line(
    service: str, code: str, subject: str, rule: str, quantity: int, unit_yen: int, percent: int
) -> InvoiceLine:
    return InvoiceLine(
        service=service,
        code=code,
        subject=subject,
        rule=rule,
        quantity=quantity,
        unit_yen=unit_yen,
        amount_yen=quantity * unit_yen,
        tax_percent=percent,
    )


def _joint_monthly(events: list[ev.Event], month: Month, tariff: Tariff) -> Iterator[InvoiceLine]:
    percent = tax_percent_on(month.first_day)
    softwares, targets = _joint_runs(events)
    for software, runs in softwares.items():
        size = charged_value(runs, month)
        if size is not None:
            tier = _tier(tariff.joint.menus, size, software)
            yield _line("jnt", f"basic-fee/{tier.name}", software, "JNT-03", 1, tier.fee_yen, percent)
    counts: dict[tuple[str, Tier], int] = defaultdict(int)
    for (software, _target), runs in targets.items():
        size = charged_value(runs, month)
        if size is not None:
            counts[software, _tier(tariff.joint.plans, size, software)] += 1
    for (software, tier), count in counts.items():
        yield _line("jnt", f"target-fee/{tier.name}", software, "JNT-04", count, tier.fee_yen, percent)


def _tier(tiers: tuple[Tier, ...], size_bytes: int, software: str) -> Tier:
    tier = tier_of(tiers, size_bytes)
    if tier is None:
        raise CorruptDataError(
            f"ledger: {software}: {size_bytes} bytes fit no tier, yet it was registered (JNT-05)"
        )
    return tier


def _joint_runs(
    events: list[ev.Event],
) -> tuple[dict[str, list[Run[int]]], dict[tuple[str, str], list[Run[int]]]]:
    softwares: dict[str, list[Run[int]]] = defaultdict(list)
    targets: dict[tuple[str, str], list[Run[int]]] = defaultdict(list)
    for event in events:
        month = Month.at(event.at_s)
        match event:
            case ev.SoftwareRegistered():
                softwares[event.software].append(Run(month, [(month, event.stored_bytes)]))
            case ev.SoftwareChanged():
                _running(softwares[event.software], event).values.append((month, event.stored_bytes))
            case ev.SoftwareEnded():
                _end(softwares[event.software], month)
                for (software, _target), runs in targets.items():
                    if software == event.software:
                        _end(runs, month)
            case ev.TargetRegistered():
                targets[event.software, event.target].append(Run(month, [(month, event.footprint_bytes)]))
            case ev.TargetChanged():
                runs = targets[event.software, event.target]
                _running(runs, event).values.append((month, event.footprint_bytes))
            case ev.TargetEnded():
                _end(targets[event.software, event.target], month)
            case _:
                pass
    return softwares, targets


def _running(runs: list[Run[int]], event: ev.Event) -> Run[int]:
    if not runs or runs[-1].end is not None:
        raise CorruptDataError(f"ledger: event {event.token} changes what is not registered")
    return runs[-1]


def _end(runs: list[Run[int]] | list[Run[str]], month: Month) -> None:
    if runs and runs[-1].end is None:
        runs[-1].end = month


def _storage_monthly(events: list[ev.Event], month: Month, tariff: Tariff) -> Iterator[InvoiceLine]:
    contracts: dict[str, list[Run[str]]] = defaultdict(list)
    for event in events:
        at = Month.at(event.at_s)
        match event:
            case ev.PlanOpened():
                contracts[event.contract].append(Run(at, [(at, event.plan)]))
            case ev.PlanChanged():
                contracts[event.contract][-1].values.append((at, event.plan))
            case ev.PlanEnded():
                _end(contracts[event.contract], at)
            case _:
                pass
    percent = tax_percent_on(month.first_day)
    for contract, runs in contracts.items():
        plan = charged_value(runs, month)
        if plan is not None:
            fee_yen = tariff.storage_plans_yen[plan]
            yield _line("azk", f"plan-fee/{plan}", contract, "AZK-01", 1, fee_yen, percent)


def _joint_once(events: list[ev.Event], month: Month) -> Iterator[InvoiceLine]:
    works: set[str] = set()
    for event in events:
        if not isinstance(event, ev.SoftwareRegistered | ev.SoftwareChanged | ev.SoftwareAmended):
            continue
        first_of_work = event.work not in works
        works.add(event.work)
        if Month.at(event.at_s) == month:
            yield from _work_lines(event, first_of_work=first_of_work)


def _work_lines(
    event: ev.SoftwareRegistered | ev.SoftwareChanged | ev.SoftwareAmended, *, first_of_work: bool
) -> Iterator[InvoiceLine]:
    date = jst_date(event.at_s)
    prices = tariff_on(date).joint
    percent = tax_percent_on(date)
    if first_of_work:
        yield _line("jnt", "base-work-fee", event.work, "JNT-11", 1, prices.base_work_yen, percent)
    match event:
        case ev.SoftwareRegistered():
            yield _line("jnt", "contract-fee", event.software, "JNT-11", 1, prices.contract_fee_yen, percent)
            yield _line("jnt", "new-work-fee", event.software, "JNT-11", 1, prices.new_work_yen, percent)
        case ev.SoftwareChanged():
            yield _line(
                "jnt", "change-work-fee", event.software, "JNT-11", 1, prices.change_work_yen, percent
            )
        case ev.SoftwareAmended():
            yield _line("jnt", "other-work-fee", event.software, "JNT-11", 1, prices.other_work_yen, percent)
