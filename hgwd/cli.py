"""`hgwd`: run the daemon, ask it, decide pairings from the console.

Exit codes: 0 done, 1 a fault, 2 configuration or usage, 3 hgwd is not running or refused what was asked.
"""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from hgwd.adapters.control import SOCKET_FILE, ControlAnswer, ControlRequest, ask_control
from hgwd.adapters.wan import read_wan_prefixes
from hgwd.config import CONFIG_PATH_DEFAULT, HgwdConfig, check_files, check_listeners, load_hgwd_config
from hgwd.errors import HgwdError, LocalUseError
from runtime.errors import ConfigError, LocalError

EXIT_OK: Final = 0
EXIT_FAULT: Final = 1
EXIT_USAGE: Final = 2
EXIT_REFUSED: Final = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except ConfigError as error:
        return _fail(str(error), EXIT_USAGE)
    except LocalUseError as error:
        return _fail(str(error), EXIT_REFUSED)
    except (HgwdError, LocalError) as error:
        return _fail(str(error), EXIT_FAULT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hgwd", description="Storage gateway daemon on a home gateway.")
    parser.add_argument(
        "--config", type=Path, default=CONFIG_PATH_DEFAULT, help="hgwd.toml (default: %(default)s)"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: object, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(command=function)
        return command

    add("run", _run, "run the daemon in the foreground")
    add("check-config", _check_config, "check the configuration and print it without secrets")
    status = add("status", _status, "say how the line, the queue, the NAS devices and the software are")
    status.add_argument("--json", action="store_true", help="the whole document as JSON")
    pair = add("pair", _pair, "show the NAS that waits for approval; approve or refuse it")
    decision = pair.add_mutually_exclusive_group()
    decision.add_argument("--approve", metavar="DIGITS", help="approve it: the 6 digits the NAS shows")
    decision.add_argument("--refuse", action="store_true", help="refuse it")
    revoke = add("revoke", _revoke, "cut a paired NAS off, at once")
    revoke.add_argument("device", help="its ID, from `hgwd status`")
    add("poll", _poll, "ask the carrier now what is to run here")
    add("password", _password, "set the password of the admin page (asks, or reads one line from a pipe)")
    return parser


def _run(options: argparse.Namespace) -> int:
    config = load_hgwd_config(options.config)
    check_listeners(config, read_wan_prefixes(config.gateway.wan_interface))
    check_files(config)

    from hgwd.daemon import run_daemon
    from runtime.config import describe
    from runtime.supervise import Service, run_service

    async def serve(service: Service) -> None:
        service.log.info("starting", config=describe(config))
        await run_daemon(service, config)

    return run_service(serve, name="hgwd")


def _check_config(options: argparse.Namespace) -> int:
    from runtime.config import describe

    config = load_hgwd_config(options.config)
    check_listeners(config, read_wan_prefixes(config.gateway.wan_interface))
    check_files(config)
    print(msgspec.json.format(msgspec.json.encode(describe(config))).decode())
    return EXIT_OK


def _status(options: argparse.Namespace) -> int:
    from hgwd.core.status import GatewayStatus
    from hgwd.status_text import status_text

    result = _ask(load_hgwd_config(options.config), ControlRequest(command="status"))
    if options.json:
        print(msgspec.json.format(bytes(result)).decode())
    else:
        print(status_text(msgspec.json.decode(result, type=GatewayStatus)))
    return EXIT_OK


def _pair(options: argparse.Namespace) -> int:
    config = load_hgwd_config(options.config)
    waiting = msgspec.json.decode(
        _ask(config, ControlRequest(command="pair-list")), type=dict[str, str] | None
    )
    if waiting is None:
        return _fail("no NAS waits for approval now: start `nas-agent pair` on it", EXIT_REFUSED)
    if options.refuse:
        _ask(config, ControlRequest(command="pair-refuse", pair=waiting["pair"]))
        print(f"refused {waiting['name']}")
    elif options.approve is not None:
        digits = options.approve.replace(" ", "")
        if digits != waiting["digits"]:
            text = f"the digits differ: here {waiting['digits']}. Somebody may be in between: refuse it"
            return _fail(text, EXIT_REFUSED)
        answer = _ask(config, ControlRequest(command="pair-approve", pair=waiting["pair"], digits=digits))
        print(f"approved {waiting['name']} as device {msgspec.json.decode(answer, type=str)}")
    else:
        print(f"{waiting['name']} waits. Digits: {waiting['digits']}. The NAS must show the same.")
    return EXIT_OK


def _revoke(options: argparse.Namespace) -> int:
    config = load_hgwd_config(options.config)
    known = msgspec.json.decode(
        _ask(config, ControlRequest(command="revoke", device=options.device)), type=bool
    )
    if not known:
        return _fail(f"{options.device}: expected the ID of a paired device", EXIT_REFUSED)
    print(f"revoked {options.device}")
    return EXIT_OK


def _poll(options: argparse.Namespace) -> int:
    _ask(load_hgwd_config(options.config), ControlRequest(command="poll"))
    return EXIT_OK


def _password(options: argparse.Namespace) -> int:
    from hgwd.passwords import PASSWORD_CHARS_MAX, PASSWORD_CHARS_MIN, hash_password
    from runtime.files import write_atomic

    config = load_hgwd_config(options.config)
    password = (
        getpass.getpass("admin password: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    )
    if not PASSWORD_CHARS_MIN <= len(password) <= PASSWORD_CHARS_MAX:
        return _fail(
            f"password: expected {PASSWORD_CHARS_MIN} to {PASSWORD_CHARS_MAX} characters, got {len(password)}",
            EXIT_USAGE,
        )
    write_atomic(config.admin.password_file, hash_password(password).encode() + b"\n", mode=0o600)
    return EXIT_OK


def _ask(config: HgwdConfig, request: ControlRequest) -> msgspec.Raw:
    answer: ControlAnswer = ask_control(Path(config.gateway.state_dir) / SOCKET_FILE, request)
    if answer.error is not None:
        raise LocalUseError(answer.error)
    return answer.result


def _fail(message: str, code: int) -> int:
    print(f"hgwd: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
