"""Storage contracts reach the ledger once, whatever happened in between (AZK-01, X-13)."""

from __future__ import annotations

from carrier.ledger.events import PlanEnded, PlanOpened
from carrier.ledger.rules import Month
from carrier.ledger.store import read_bill, read_events
from deliver.services.contract_charges import record_contracts
from wire.ids import ContractId

CONTRACT = ContractId.parse("AZK0000000001")


def test_a_contract_opened_before_a_crash_is_charged_afterwards_and_once(program, kit, clock):
    kit.add_line(program)
    program.carrier.admin.add_contract(CONTRACT, "100gb", kit.CUSTOMER)
    clock.advance(3600)
    assert record_contracts(program.database, now_s=int(clock.now_s())) == 1
    assert record_contracts(program.database, now_s=int(clock.now_s())) == 0
    with program.database.read() as connection:
        (event,) = read_events(connection, kit.CUSTOMER.text)
        assert isinstance(event, PlanOpened)
        assert (event.plan, event.at_s) == ("100gb", kit.NOW_S)
        assert read_bill(connection, kit.CUSTOMER.text, Month.parse("2026-12")).total_yen == 5_280


def test_an_ended_contract_is_charged_for_its_last_month_and_not_after(program, kit, clock):
    kit.add_line(program)
    program.carrier.admin.add_contract(CONTRACT, "100gb", kit.CUSTOMER)
    clock.advance(20 * 86_400)
    program.carrier.admin.end_contract(CONTRACT)
    assert record_contracts(program.database, now_s=int(clock.now_s())) == 2
    assert record_contracts(program.database, now_s=int(clock.now_s())) == 0
    with program.database.read() as connection:
        assert isinstance(read_events(connection, kit.CUSTOMER.text)[-1], PlanEnded)
        months = [Month(2026, 11), Month(2026, 12), Month(2027, 1)]
        assert [read_bill(connection, kit.CUSTOMER.text, month).total_yen for month in months] == [
            0,
            5_280,
            0,
        ]
