"""`nas-agent`: arguments in, exit code out.

0 done, 1 failed, 2 wrong usage or configuration, 3 partly (some paths were skipped), 4 refused (U13). Every fault that
the program knows becomes one sentence with cause and next step; nothing else is caught.
"""

from __future__ import annotations

import argparse
import datetime as dt
import getpass
import re
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import trio

from nas_agent.adapters.state import StateDirectory
from nas_agent.cli_parser import build_parser
from nas_agent.commands.backup import BackupRequest, run_backup
from nas_agent.commands.context import Context
from nas_agent.commands.restore import ReadRequest, RestoreRequest, run_list, run_restore, run_verify
from nas_agent.commands.setup import (
    InitRequest,
    run_init,
    run_key_recover,
    run_key_sheet,
    run_key_show,
    run_status,
)
from nas_agent.config import load_agent_config
from nas_agent.core.advice import explain_refusal
from nas_agent.core.targets import parse_host_port
from nas_agent.errors import StoreRefusedError, VaultRefusedError
from nas_agent.events import ExitCode, FailureEvent
from nas_agent.keys.contract import KdfCost
from nas_agent.keys.errors import KeysError
from nas_agent.ports import Refusal
from nas_agent.terminal import Terminal
from runtime.errors import EdgeError, LocalError
from runtime.files import load_secret
from wire.errors import WireError
from wire.ids import BackupSetName, ContractId

Command = Callable[[Context, argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = build_parser().parse_args(arguments)
    terminal = Terminal(sys.stdout, sys.stderr, json=options.json, quiet=options.quiet)
    try:
        state = StateDirectory(Path(options.state).absolute())
        context = Context(state, load_agent_config(state.path), terminal)
        return _COMMANDS[options.command](context, options)
    except KeyboardInterrupt:
        return _fail(terminal, 1, "interrupted", "interrupted; run the same again, what was sent is kept")
    except (EdgeError, KeysError, WireError, OSError, BaseExceptionGroup) as error:
        return _fail_known(terminal, error)


def _fail_known(terminal: Terminal, error: BaseException) -> int:
    while isinstance(error, BaseExceptionGroup):  # what a nursery wrapped: the first fault is the cause
        error = error.exceptions[0]
    if isinstance(error, StoreRefusedError):
        refusal = Refusal(error.refusal_code, str(error).removeprefix(f"{error.refusal_code}: "))
        return _fail(terminal, 4, error.refusal_code, explain_refusal(refusal))
    if isinstance(error, OSError):
        return _fail(terminal, 1, "system", f"{error.filename or 'this machine'}: {error.strerror or error}")
    if isinstance(error, KeyboardInterrupt):
        return _fail(terminal, 1, "interrupted", "interrupted; run the same again, what was sent is kept")
    if isinstance(error, EdgeError | KeysError | WireError):
        exit_code: ExitCode = 4 if isinstance(error, VaultRefusedError) else getattr(error, "exit_code", 1)
        return _fail(terminal, exit_code, getattr(error, "code", _code_of(error)), str(error))
    raise error


def _code_of(error: Exception) -> str:
    """Return a stable code for the errors that carry none: `wrong-passphrase`, `signature`, …."""
    words = re.findall("[A-Z][a-z0-9]*", type(error).__name__.removesuffix("Error"))
    return "-".join(words).lower()


def _fail(terminal: Terminal, exit_code: ExitCode, code: str, message: str) -> int:
    terminal.emit(FailureEvent(exit_code=exit_code, code=code, message=message))
    return exit_code


def _run(function: Callable[..., Awaitable[int]], *arguments: object) -> int:
    return trio.run(function, *arguments)


def _init(context: Context, options: argparse.Namespace) -> int:
    request = InitRequest(
        contract=None if options.contract is None else ContractId.parse(options.contract),
        name=options.name or socket.gethostname(),
        passphrase=_passphrase(options, confirm=True),
        sheet=options.recovery_sheet,
        cost=_kdf_cost(options),
    )
    return run_init(context, request)


def _pair(context: Context, options: argparse.Namespace) -> int:
    from nas_agent.commands.pair import PairRequest, run_pair

    if (options.enrolment_code is None) != (options.service_root is None):
        raise LocalError(
            "--enrolment-code and --service-root stand together in the opening notice: give both"
        )
    contract = None if options.contract is None else ContractId.parse(options.contract)
    renames = contract is not None and context.state.load_device().contract != contract.text
    request = PairRequest(
        target=parse_host_port(options.gateway),
        name=options.name or socket.gethostname(),
        contract=contract,
        enrolment_code=options.enrolment_code,
        service_root=options.service_root,
        passphrase=_passphrase(options) if renames else None,
    )
    return _run(run_pair, context, request)


def _backup(context: Context, options: argparse.Namespace) -> int:
    request = BackupRequest(
        sources=tuple(options.sources),
        backup_set=BackupSetName.parse(options.set),
        target=options.to,
        excludes=tuple(options.exclude),
        one_file_system=options.one_file_system,
        detach=options.detach,
        shows_progress=not options.quiet,
    )
    return _run(run_backup, context, request)


def _list(context: Context, options: argparse.Namespace) -> int:
    return _run(run_list, context, _read_request(options))


def _restore(context: Context, options: argparse.Namespace) -> int:
    request = RestoreRequest(
        read=_read_request(options),
        generation=options.generation,
        as_of=None if options.as_of is None else _parse_moment(options.as_of),
        to=options.to,
        paths=tuple(options.paths),
        overwrite=options.overwrite,
    )
    return _run(run_restore, context, request)


def _verify(context: Context, options: argparse.Namespace) -> int:
    return _run(run_verify, context, _read_request(options), options.generation)


def _key(context: Context, options: argparse.Namespace) -> int:
    match options.key_command:
        case "show":
            return run_key_show(context)
        case "sheet":
            return run_key_sheet(context, _passphrase(options), options.file)
        case _:
            passphrase = _passphrase(options, confirm=True)
            return run_key_recover(context, options.sheet, passphrase, cost=_kdf_cost(options))


_COMMANDS: dict[str, Command] = {
    "init": _init,
    "pair": _pair,
    "backup": _backup,
    "list": _list,
    "restore": _restore,
    "verify": _verify,
    "status": lambda context, _: run_status(context),
    "key": _key,
}


def _read_request(options: argparse.Namespace) -> ReadRequest:
    return ReadRequest(
        backup_set=BackupSetName.parse(options.set),
        target=options.source,
        passphrase=_passphrase(options),
        shows_progress=not options.quiet,
    )


def _passphrase(options: argparse.Namespace, *, confirm: bool = False) -> str:
    if options.passphrase_file is not None:
        return load_secret(options.passphrase_file).decode("utf-8", "surrogateescape")
    if not sys.stdin.isatty():
        raise LocalError("the owner's passphrase is needed: use a terminal, or --passphrase-file (mode 0600)")
    passphrase = getpass.getpass("passphrase: ")
    if confirm and getpass.getpass("the same again: ") != passphrase:
        raise LocalError("the two passphrases differ: run again")
    return passphrase


def _kdf_cost(options: argparse.Namespace) -> KdfCost:
    return KdfCost(memory_bytes=options.kdf_memory_mib << 20)


def _parse_moment(text: str) -> dt.datetime:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise LocalError(
            f"--as-of {text!r}: expected a date as 2026-11-20 or a time as 2026-11-20T18:00"
        ) from error
    if len(text) <= len("2026-11-20"):
        moment += dt.timedelta(days=1, seconds=-1)  # a day means until its end
    return moment.astimezone()


if __name__ == "__main__":
    sys.exit(main())
