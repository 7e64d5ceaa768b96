"""Commands on storage for an administrator or an engineer on call: `deliver admin device …` and `deliver admin storage …`.

Rules: nothing here reads a backup: the service holds no key. What changes or deletes says so first with `--dry-run`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any, Final

import attrs

from deliver.app import Program
from wire.ids import ContractId

EXIT_OK: Final = 0
EXIT_FOUND: Final = 1
EXIT_REFUSED: Final = 3

Command = Callable[[Program, argparse.Namespace], int]
Runner = Callable[[Command], Callable[[argparse.Namespace], int]]
Parsed = Callable[[Callable[[str], object]], Callable[[str], object]]


def add_storage_commands(things: Any, runner: Runner, parsed: Parsed) -> None:
    """Register the commands below `deliver admin`."""
    device = things.add_parser("device", help="cut one NAS off, or let it in again (AZK-15)")
    verbs = device.add_subparsers(dest="verb", required=True)
    for verb, text in (
        ("lock", "refused from the next request on, transfers stopped; can be undone"),
        ("unlock", "undo a lock"),
        ("revoke", "for good; its backups stay readable with the contract's passphrase"),
    ):
        command = verbs.add_parser(verb, help=text)
        command.add_argument(
            "device", type=parsed(_device_key), help="64 hex digits, as `nas-agent key show` says"
        )
        command.set_defaults(run=runner(change_device))
    storage = things.add_parser("storage", help="usage, collection, damage, index")
    verbs = storage.add_subparsers(dest="verb", required=True)
    for name, run, text in (
        ("usage", show_usage, "bytes and counts of a contract (AZK-03)"),
        ("code", issue_code, "a further enrolment code, for another NAS"),
    ):
        command = verbs.add_parser(name, help=text)
        command.add_argument("contract", type=parsed(ContractId.parse))
        command.set_defaults(run=runner(run))
    collect = verbs.add_parser("gc", help="expire the trash, delete what no generation needs")
    collect.add_argument("--dry-run", action="store_true", help="say what would happen now, change nothing")
    collect.add_argument(
        "--remove-orphans", action="store_true", help="also blobs without a row, older than a day"
    )
    collect.set_defaults(run=runner(collect_garbage))
    scrub = verbs.add_parser(
        "scrub", help="read every pack; name damaged ones and the generations that need them"
    )
    scrub.set_defaults(run=runner(scrub_packs))
    rebuild = verbs.add_parser("rebuild-index", help="write the index again from the packs alone")
    rebuild.set_defaults(run=runner(rebuild_index))


def change_device(program: Program, arguments: argparse.Namespace) -> int:
    """Lock, unlock or revoke a device."""
    admin = program.carrier.admin
    change = {"lock": admin.lock_device, "unlock": admin.unlock_device, "revoke": admin.revoke_device}
    if change[arguments.verb](arguments.device):
        print(f"device {arguments.device.hex()}: {arguments.verb} done")
        return EXIT_OK
    print(f"refused: no device {arguments.device.hex()} that can be {arguments.verb}ed")
    return EXIT_REFUSED


def show_usage(program: Program, arguments: argparse.Namespace) -> int:
    """Print the usage of a contract as JSON."""
    usage = program.carrier.admin.read_usage(arguments.contract)
    if usage is None:
        return _no_contract(arguments.contract)
    print(json.dumps({**attrs.asdict(usage, recurse=False), "contract": usage.contract.text}))
    return EXIT_OK


def issue_code(program: Program, arguments: argparse.Namespace) -> int:
    """Print a further enrolment code."""
    code = program.carrier.admin.add_code(arguments.contract)
    if code is None:
        return _no_contract(arguments.contract)
    print(f"enrolment code  {code} (once)")
    return EXIT_OK


def collect_garbage(program: Program, arguments: argparse.Namespace) -> int:
    """Collect, or say what a collection would do."""
    report = program.carrier.admin.gc(dry_run=arguments.dry_run, remove_orphans=arguments.remove_orphans)
    print(json.dumps({"dry_run": arguments.dry_run, **attrs.asdict(report)}))
    return EXIT_OK


def scrub_packs(program: Program, _arguments: argparse.Namespace) -> int:
    """Read every pack; exit 1 when something is damaged."""
    damages = program.carrier.admin.scrub()
    for damage in damages:
        needed_by = ", ".join(damage.generations) or "no generation"
        print(f"damaged {damage.sha256} of {damage.contract}: {damage.cause}; needed by {needed_by}")
    print(f"{len(damages)} damaged pack(s)")
    return EXIT_FOUND if damages else EXIT_OK


def rebuild_index(program: Program, _arguments: argparse.Namespace) -> int:
    """Rebuild the index; exit 1 when a blob could not be read."""
    report = program.carrier.admin.rebuild_index()
    for damage in report.damaged:
        print(f"damaged {damage}")
    print(f"{report.refreshed} refreshed, {report.added} added, {report.skipped} skipped")
    return EXIT_FOUND if report.damaged else EXIT_OK


def _no_contract(contract: ContractId) -> int:
    print(f"refused: no running contract {contract}")
    return EXIT_REFUSED


def _device_key(text: str) -> bytes:
    key = bytes.fromhex(text)
    if len(key) != 32:
        raise ValueError(f"device: expected 64 hex digits, got {len(text)} characters")
    return key
