"""Commands of the carrier's administrators: `deliver admin line | prefix | gateway | storage-contract | operator | …`.

Rules: they work on the database directly, also while `deliver serve` runs; each prints what it did, or the refusal.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import attrs
import msgspec
import sqlalchemy as sa

from carrier.ledger.billing import Invoice
from carrier.ledger.rules import Month
from carrier.ledger.store import MonthNotOver, close_month, read_bill
from carrier.lines import outcomes as lines_out
from carrier.lines.addresses import Prefix
from carrier.lines.domain import Line
from carrier.lines.tables import AccessType, Region
from carrier.storage import outcomes as storage_out
from carrier.storage.tables import PLANS
from deliver.app import Program, open_program
from deliver.commands.reports import show_reports
from deliver.commands.storage import add_storage_commands
from deliver.config import load_home
from deliver.domain.pricing import Refused
from deliver.engines.schema import joint_installed, joint_target
from deliver.services.contract_charges import record_contracts
from deliver.services.operators import Operator, add_operator, sign_shards
from deliver.signing.keystore import OFFLINE, KeyStore
from runtime.errors import EdgeError, LocalError
from runtime.files import load_secret
from wire.errors import WireError
from wire.ids import ContractId, CustomerId, GatewaySerial, OperatorId
from wire.package import GATEWAY_MAKERS
from wire.units import format_bytes

EXIT_OK: Final = 0
EXIT_REFUSED: Final = 3

_Command = Callable[[Program, argparse.Namespace], int]


def add_admin_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `deliver admin …`."""
    admin = commands.add_parser("admin", help="lines, gateways, contracts, operators, ceremonies, bills")
    admin.add_argument("--config", type=Path, required=True, help="deliver.toml or its directory")
    things = admin.add_subparsers(dest="thing", required=True)
    _add_line_commands(things)
    _add_joint_commands(things)
    add_storage_commands(things, _runner, _parsed)
    contract = things.add_parser("storage-contract").add_subparsers(dest="verb", required=True)
    add = contract.add_parser("add", help="open a contract and print its opening notice")
    add.add_argument("contract", type=_parsed(ContractId.parse), help="AZK and 10 digits")
    add.add_argument("--customer", type=_parsed(CustomerId.parse), required=True)
    add.add_argument("--plan", type=_parsed(_plan), required=True, help=f"one of {', '.join(PLANS)}")
    add.add_argument("--json", action="store_true")
    add.set_defaults(run=_runner(contract_add))
    bill = things.add_parser("bill", help="the bill of an operator or a customer for a month")
    bill.add_argument("--payer", required=True, help="operator ID or customer ID")
    bill.add_argument("--month", type=_parsed(Month.parse), required=True, help="YYYY-MM, Japan time")
    bill.add_argument("--close", action="store_true", help="write it into the books; the month must be over")
    bill.add_argument("--json", action="store_true")
    bill.set_defaults(run=_runner(show_bill))


def _add_line_commands(things: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    line = things.add_parser("line").add_subparsers(dest="verb", required=True)
    add = line.add_parser("add")
    add.add_argument("customer", type=_parsed(CustomerId.parse), help="CAF and 10 digits")
    add.add_argument("--region", choices=[item.value for item in Region], default=Region.EAST.value)
    add.add_argument(
        "--access", choices=[item.value for item in AccessType], default=AccessType.HIKARI_NEXT.value
    )
    add.set_defaults(run=_runner(line_add))
    end = line.add_parser("end", help="the line ends with everything on it (JNT-25)")
    end.add_argument("customer", type=_parsed(CustomerId.parse))
    end.set_defaults(run=_runner(line_end))
    prefix = things.add_parser("prefix").add_subparsers(dest="verb", required=True)
    for verb, command in (("add", prefix_add), ("end", prefix_end)):
        parser = prefix.add_parser(verb)
        parser.add_argument("customer", type=_parsed(CustomerId.parse))
        parser.add_argument("prefix", type=_parsed(Prefix.parse), help="such as 2001:db8:1:100::/56")
        parser.set_defaults(run=_runner(command))
    gateway = things.add_parser("gateway").add_subparsers(dest="verb", required=True)
    add = gateway.add_parser("add")
    add.add_argument("customer", type=_parsed(CustomerId.parse))
    add.add_argument("serial", type=_parsed(GatewaySerial.parse))
    add.add_argument("--model", required=True, help="series, such as PR-500")
    add.add_argument("--maker", choices=GATEWAY_MAKERS, required=True)
    add.add_argument("--secret", type=Path, required=True, help="file with the device's secret, in hex")
    add.set_defaults(run=_runner(gateway_add))
    end = gateway.add_parser("end", help="the gateway contract ends; delivery ends with it (JNT-25)")
    end.add_argument("serial", type=_parsed(GatewaySerial.parse))
    end.set_defaults(run=_runner(gateway_end))
    shown = gateway.add_parser("list", help="enrolled gateways")
    shown.add_argument("--json", action="store_true")
    shown.set_defaults(run=_runner(gateway_list))
    alarms = gateway.add_parser("alarms", help="refused enrolments, newest first")
    alarms.set_defaults(run=_runner(gateway_alarms))
    reports = gateway.add_parser("reports", help="what each gateway said last, signs of an attack first")
    reports.add_argument("--json", action="store_true")
    reports.set_defaults(run=_runner(show_reports))


def _add_joint_commands(things: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    operator = things.add_parser("operator").add_subparsers(dest="verb", required=True)
    add = operator.add_parser("add")
    add.add_argument("operator", type=_parsed(OperatorId.parse))
    add.add_argument("--api-key", type=_parsed(_public_key), required=True, help="FILE.pub or 64 hex digits")
    add.add_argument(
        "--key", type=_parsed(_public_key), action="append", required=True, help="FILE.pub or 64 hex digits"
    )
    add.add_argument("--threshold", type=int, default=1)
    add.set_defaults(run=_runner(operator_add))
    ceremony = things.add_parser("ceremony").add_subparsers(dest="verb", required=True)
    shard = ceremony.add_parser("shard", help="delegate waiting operators with the offline shard key")
    shard.add_argument(
        "--offline", type=Path, help="directory of the offline keys (default: offline/ beside the config)"
    )
    shard.set_defaults(run=_runner(ceremony_shard))
    targets = things.add_parser("targets", help="delivery targets and what gateways reported")
    targets.add_argument("--json", action="store_true")
    targets.set_defaults(run=_runner(show_targets))


def _runner(command: _Command) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        program = open_program(load_home(arguments.config))
        try:
            return command(program, arguments)
        finally:
            program.close()

    return run


def line_add(program: Program, arguments: argparse.Namespace) -> int:
    """Open a line."""
    outcome = program.carrier.registry.add_line(
        arguments.customer, Region(arguments.region), AccessType(arguments.access)
    )
    if isinstance(outcome, Line):
        return _done(f"line {outcome.customer_id}: {outcome.region} {outcome.access_type}")
    return _refused(outcome)


def line_end(program: Program, arguments: argparse.Namespace) -> int:
    """End a line: authentication first, then delivery (JNT-25)."""
    ended = program.carrier.events.terminate_line(arguments.customer)
    targets = program.rollout().end_what_ended(now_s=int(program.clock.now_s()))
    return _done(
        f"line {arguments.customer} ended: {ended.gateway_contracts} gateway(s), {targets} delivery target(s)"
    )


def prefix_add(program: Program, arguments: argparse.Namespace) -> int:
    """Give a prefix to a line, from now on."""
    outcome = program.carrier.registry.add_prefix(arguments.customer, arguments.prefix)
    if isinstance(outcome, lines_out.PrefixAdded):
        return _done(f"prefix {outcome.prefix.text}: line {arguments.customer}")
    return _refused(outcome)


def prefix_end(program: Program, arguments: argparse.Namespace) -> int:
    """Take a prefix from a line, now."""
    outcome = program.carrier.registry.end_prefix(arguments.customer, arguments.prefix)
    if isinstance(outcome, lines_out.PrefixEnded):
        return _done(f"prefix {outcome.prefix.text} ended")
    return _refused(outcome)


def gateway_add(program: Program, arguments: argparse.Namespace) -> int:
    """Open a gateway contract."""
    try:
        secret = bytes.fromhex(load_secret(arguments.secret).decode("ascii").strip())
        outcome = program.carrier.registry.add_gateway_contract(
            arguments.customer, arguments.serial, arguments.model, arguments.maker, secret
        )
    except ValueError as error:
        raise LocalError(f"{arguments.secret}: expected 16 to 64 bytes in hex") from error
    if isinstance(outcome, lines_out.GatewayContracted):
        return _done(f"gateway {outcome.serial}: contract on line {outcome.customer_id}")
    return _refused(outcome)


def gateway_end(program: Program, arguments: argparse.Namespace) -> int:
    """End a gateway contract; without another gateway on the line its delivery targets end too."""
    outcome = program.carrier.registry.end_gateway_contract(arguments.serial)
    if not isinstance(outcome, lines_out.GatewayContractEnded):
        return _refused(outcome)
    targets = program.rollout().end_what_ended(now_s=int(program.clock.now_s()))
    return _done(f"gateway {outcome.serial} ended, {targets} delivery target(s) with it")


def gateway_list(program: Program, arguments: argparse.Namespace) -> int:
    """Show enrolled gateways."""
    rows = [
        {
            "serial": item.serial.text,
            "model": item.model,
            "maker": item.maker,
            "customer": item.customer_id.text,
            "gateway": item.gateway.text,
            "key": item.key.hex(),
        }
        for item in program.carrier.registry.list_gateways()
    ]
    return _show(rows, as_json=arguments.json)


def gateway_alarms(program: Program, _arguments: argparse.Namespace) -> int:
    """Show refused enrolments."""
    for item in program.carrier.registry.list_alarms():
        _say(
            f"{item.customer_id} {item.serial} {item.kind} × {item.count}, last {item.last_at}, key {item.last_key.hex()}"
        )
    return EXIT_OK


def contract_add(program: Program, arguments: argparse.Namespace) -> int:
    """Open a storage contract, print the opening notice, start its charge (AZK, X-13)."""
    outcome = program.carrier.admin.add_contract(arguments.contract, arguments.plan, arguments.customer)
    if not isinstance(outcome, storage_out.OpeningNotice):
        return _refused(outcome)
    record_contracts(program.database, now_s=int(program.clock.now_s()))
    if arguments.json:
        plain = attrs.asdict(outcome, recurse=False)
        return _done(msgspec.json.encode({name: _plain(value) for name, value in plain.items()}).decode())
    _say("開通のご案内 / opening notice")
    _say(f"  contract        {outcome.contract} on line {outcome.customer_id}")
    _say(f"  plan            {outcome.plan}, {format_bytes(outcome.capacity_bytes)}")
    _say(f"  enrolment code  {outcome.enrolment_code} (once)")
    _say(f"  service root    {outcome.service_root}")
    return EXIT_OK


def operator_add(program: Program, arguments: argparse.Namespace) -> int:
    """Register an operator; it waits for the next shard ceremony."""
    now_s = int(program.clock.now_s())
    outcome = add_operator(
        program.database, arguments.operator, arguments.api_key, arguments.key, arguments.threshold, now_s
    )
    if isinstance(outcome, Operator):
        state = "delegated" if outcome.delegated else "waits for the shard ceremony"
        return _done(
            f"operator {outcome.operator}: {outcome.keys.threshold} of {len(arguments.key)} keys, {state}"
        )
    return _refused(outcome)


def ceremony_shard(program: Program, arguments: argparse.Namespace) -> int:
    """Sign the shards of waiting operators with the offline key."""
    offline = KeyStore(arguments.offline or program.home.directory / OFFLINE)
    signed = sign_shards(
        program.database,
        program.image,
        offline.load("shards"),
        program.image_keys(),
        now_s=program.clock.now_s(),
    )
    for item in signed:
        _say(f"shard {item.shard} version {item.version}: {', '.join(name.text for name in item.operators)}")
    return _done(f"{len(signed)} shard(s) signed")


def show_targets(program: Program, arguments: argparse.Namespace) -> int:
    """Show delivery targets and installed software."""
    with program.database.read() as connection:
        targets = [dict(row) for row in connection.execute(sa.select(joint_target)).mappings()]
        installed = [dict(row) for row in connection.execute(sa.select(joint_installed)).mappings()]
    if arguments.json:
        return _done(msgspec.json.encode({"targets": targets, "installed": installed}).decode())
    for row in targets:
        _say(f"{row['customer']} {row['operator']}/{row['software']} {row['version']} {row['state']}")
    for row in installed:
        fault = f" fault {row['fault']}" if row["fault"] else ""
        _say(f"gateway {row['gateway']} {row['software']} {row['version']} {row['state']}{fault}")
    return EXIT_OK


def show_bill(program: Program, arguments: argparse.Namespace) -> int:
    """Show the bill of a month, and close it when asked."""
    record_contracts(program.database, now_s=int(program.clock.now_s()))
    if arguments.close:
        with program.database.write() as connection:
            outcome = close_month(
                connection, arguments.payer, arguments.month, now_s=int(program.clock.now_s())
            )
        if isinstance(outcome, MonthNotOver):
            return _refused(outcome)
        invoice = outcome.invoice
    else:
        with program.database.read() as connection:
            invoice = read_bill(connection, arguments.payer, arguments.month)
    if arguments.json:
        return _done(invoice.encode().decode())
    _print_bill(invoice)
    return EXIT_OK


def _print_bill(invoice: Invoice) -> None:
    _say(f"{invoice.payer}, {invoice.month} (tariff {invoice.tariff})")
    for line in invoice.lines:
        _say(
            f"  {line.subject:<32} {line.code:<22} {line.quantity:>6} × {line.unit_yen:>7,} = {line.amount_yen:>9,} yen"
        )
    for tax in invoice.taxes:
        _say(f"  of {tax.total_yen:,} yen at {tax.tax_percent} %: {tax.tax_yen:,} yen tax included")
    _say(f"  total {invoice.total_yen:,} yen")


def _parsed(parse: Callable[[str], object]) -> Callable[[str], object]:
    """Return `parse` for argparse: its refusals become usage errors (exit code 2)."""

    def parse_argument(text: str) -> object:
        try:
            return parse(text)
        except (WireError, EdgeError, ValueError, OSError) as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse_argument


def _plan(text: str) -> str:
    """Return a plan's name; `100 GB` is understood as `100gb`."""
    name = text.lower().replace(" ", "")
    if name not in PLANS:
        raise ValueError(f"expected one of {', '.join(PLANS)}")
    return name


def _public_key(text: str) -> bytes:
    """Return a raw public key given as 64 hex digits or as a file that holds them."""
    digits = Path(text).read_text("ascii").strip() if Path(text).is_file() else text
    key = bytes.fromhex(digits)
    if len(key) != 32:
        raise ValueError("expected 64 hex digits or a .pub file")
    return key


def _refused(outcome: attrs.AttrsInstance) -> int:
    """Print a refusal: the name of the outcome and its facts."""
    if isinstance(outcome, Refused):
        text = f"{outcome.code} ({outcome.rule}): {outcome.message}"
    else:
        facts: dict[str, Any] = attrs.asdict(outcome, recurse=False)
        text = f"{type(outcome).__name__}: " + ", ".join(
            f"{name} {_plain(value)}" for name, value in facts.items()
        )
    sys.stderr.write(f"refused: {text}\n")
    return EXIT_REFUSED


def _plain(value: object) -> object:
    text = getattr(value, "text", None)
    return text if isinstance(text, str) else value


def _show(rows: list[dict[str, str]], *, as_json: bool) -> int:
    if as_json:
        return _done(msgspec.json.encode(rows).decode())
    for row in rows:
        _say(" ".join(row.values()))
    return EXIT_OK


def _done(text: str) -> int:
    _say(text)
    return EXIT_OK


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
