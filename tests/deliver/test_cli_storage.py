"""`deliver admin device` and `deliver admin storage`: what an administrator or an engineer on call does (AZK-03, AZK-15)."""

from __future__ import annotations

import json
import secrets

import pytest

from deliver.cli import main
from deliver.config import CONFIG_NAME
from wire.ids import ContractId, CustomerId

CONTRACT = "AZK0000000001"
CUSTOMER = "CAF0000000001"


@pytest.fixture
def admin(home, capsys):
    def run(*words: str) -> tuple[int, str]:
        code = main(["admin", "--config", str(home.directory / CONFIG_NAME), *words])
        return code, capsys.readouterr().out

    assert run("line", "add", CUSTOMER)[0] == 0
    assert run("storage-contract", "add", CONTRACT, "--customer", CUSTOMER, "--plan", "10gb")[0] == 0
    return run


def test_AZK_03_usage_tells_plan_limit_and_exact_bytes(admin):
    code, shown = admin("storage", "usage", CONTRACT)
    usage = json.loads(shown)
    assert (code, usage["contract"], usage["plan"]) == (0, CONTRACT, "10gb")
    assert (usage["limit_bytes"], usage["used_bytes"], usage["devices"]) == (10_737_418_240, 0, 0)


def test_a_contract_that_does_not_run_is_refused(admin):
    assert admin("storage", "usage", "AZK0000000099")[0] == 3
    assert admin("storage", "code", "AZK0000000099")[0] == 3


def test_each_further_enrolment_code_is_another(admin):
    first, second = (admin("storage", "code", CONTRACT) for _ in range(2))
    assert (first[0], second[0]) == (0, 0)
    assert first[1] != second[1]


@pytest.mark.parametrize("verb", ["lock", "unlock", "revoke"])
def test_AZK_15_an_unknown_device_is_refused_by_name(admin, verb):
    key = secrets.token_hex(32)
    code, shown = admin("device", verb, key)
    assert (code, key in shown) == (3, True)


def test_AZK_15_lock_unlock_and_revoke_change_the_device_and_revocation_is_for_good(admin, home):
    key = _enrolled_device(home)
    assert admin("device", "lock", key)[0] == 0
    assert admin("device", "unlock", key)[0] == 0
    assert admin("device", "revoke", key)[0] == 0
    assert admin("device", "unlock", key)[0] == 3


def _enrolled_device(home) -> str:
    import hashlib

    from carrier.storage.facts import DeviceClaim
    from deliver.app import open_program

    program = open_program(home)
    try:
        code = program.carrier.admin.add_code(ContractId.parse(CONTRACT))
        line = program.carrier.registry.find_line(CustomerId.parse(CUSTOMER))
        claim = DeviceClaim(
            contract=ContractId.parse(CONTRACT),
            device=secrets.token_bytes(32),
            cert=b"certificate",
            code_sha256=hashlib.sha256(bytes.fromhex(code)).digest(),
            box_key=bytes(32),
            sign_key=bytes(32),
        )
        stores = program.carrier.storage.stores
        stores.contracts.enrol_device(claim, line.line_id, int(program.clock.now_s()))
        return claim.device.hex()
    finally:
        program.close()


def test_collection_of_nothing_changes_nothing_and_says_so(admin):
    for words in (("--dry-run",), ()):
        code, shown = admin("storage", "gc", *words)
        report = json.loads(shown)
        assert code == 0
        assert report.pop("dry_run") is bool(words)
        assert set(report.values()) == {0}


def test_scrub_and_rebuild_of_an_empty_vault_find_no_damage(admin):
    assert admin("storage", "scrub") == (0, "0 damaged pack(s)\n")
    assert admin("storage", "rebuild-index") == (0, "0 refreshed, 0 added, 0 skipped\n")
