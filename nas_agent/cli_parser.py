"""The command line of `nas-agent`: names, defaults, help texts."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Final, TypeAlias

from nas_agent.config import DEFAULT_SET

_EPILOG: Final = """\
examples:
  nas-agent init --recovery-sheet sheet.txt
  nas-agent backup /srv/data --to file:///mnt/usb/vault
  nas-agent pair --gateway '[fe80::1%eth0]:8443' --contract AZK0000000001 --enrolment-code CODE --service-root HEX
  nas-agent backup /srv/data
  nas-agent list
  nas-agent restore latest --to /srv/restored photos/2026

exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 partly (some paths were skipped), 4 refused
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; `command` names the command."""
    common = _common_options()
    parser = argparse.ArgumentParser(
        prog="nas-agent",
        description="Back up a NAS through the home gateway, or to a directory; restore and verify.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_setup(commands, common)
    _add_backup(commands, common)
    _add_reading(commands, common)
    return parser


def _common_options() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--state", default=_default_state(), metavar="DIR", help="state directory (%(default)s)"
    )
    common.add_argument("--json", action="store_true", help="one JSON event per line on stdout")
    common.add_argument("--quiet", action="store_true", help="no progress; the result in one line")
    return common


def _default_state() -> str:
    if named := os.environ.get("NAS_AGENT_STATE"):
        return named
    return "/var/lib/nas-agent" if os.geteuid() == 0 else str(Path.home() / ".local/state/nas-agent")


_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - its only name


def _add_setup(commands: _Commands, common: argparse.ArgumentParser) -> None:
    init = commands.add_parser("init", parents=[common], help="make the contract's and this device's keys")
    init.add_argument("--contract", metavar="AZK…", help="contract number, if there is one already")
    init.add_argument("--recovery-sheet", type=Path, metavar="FILE", help="write the sheet to print")
    _add_name(init)
    _add_passphrase(init)
    _add_kdf(init)
    pair = commands.add_parser(
        "pair", parents=[common], help="pair with the gateway; a human compares six digits"
    )
    pair.add_argument("--gateway", required=True, metavar="HOST:PORT", help="IPv6 as [address]:port")
    pair.add_argument("--contract", metavar="AZK…", help="contract number of the opening notice")
    pair.add_argument("--enrolment-code", metavar="CODE", help="single-use code of the opening notice")
    pair.add_argument("--service-root", metavar="HEX", help="service root key of the opening notice")
    _add_name(pair)
    _add_passphrase(pair)
    commands.add_parser("status", parents=[common], help="keys, gateway, last generations; asks nobody")
    key = commands.add_parser("key", help="fingerprints, recovery sheet, new passphrase")
    actions = key.add_subparsers(dest="key_command", required=True, metavar="ACTION")
    actions.add_parser("show", parents=[common], help="print fingerprints")
    sheet = actions.add_parser("sheet", parents=[common], help="write a recovery sheet")
    sheet.add_argument("file", type=Path, metavar="FILE")
    _add_passphrase(sheet)
    recover = actions.add_parser(
        "recover", parents=[common], help="set a new passphrase from a recovery sheet"
    )
    recover.add_argument("--sheet", type=Path, required=True, metavar="FILE")
    _add_passphrase(recover)
    _add_kdf(recover)


def _add_backup(commands: _Commands, common: argparse.ArgumentParser) -> None:
    backup = commands.add_parser("backup", parents=[common], help="make a new generation")
    backup.add_argument(
        "sources", nargs="*", metavar="SRC", help="directories or files; none: the configured set"
    )
    _add_set(backup)
    backup.add_argument(
        "--to",
        metavar="URL",
        help="file:///directory or https://gateway:port (the paired gateway); a backup never holds its own vault and state",
    )
    backup.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help="as in .gitignore")
    backup.add_argument("--one-file-system", action="store_true", help="do not enter mounted file systems")
    backup.add_argument(
        "--detach", action="store_true", help="return at 'spooled': on the gateway, not backed up yet"
    )


def _add_reading(commands: _Commands, common: argparse.ArgumentParser) -> None:
    for name, text in (
        ("list", "list the generations, each verified"),
        ("restore", "restore a generation or some of its paths"),
        ("verify", "read and check every byte of a generation"),
    ):
        command = commands.add_parser(name, parents=[common], help=text)
        _add_set(command)
        command.add_argument(
            "--from", dest="source", metavar="URL", help="where the vault is (as --to of backup)"
        )
        _add_passphrase(command)
        if name == "restore":
            command.add_argument(
                "generation", metavar="GENERATION", help="'latest', a number of `list`, or an ID"
            )
            command.add_argument("--to", required=True, metavar="DIR", help="a new or empty directory")
            command.add_argument(
                "paths", nargs="*", metavar="PATH", help="relative to the source; none: everything"
            )
            command.add_argument(
                "--as-of", metavar="TIME", help="the newest generation up to this date or time"
            )
            command.add_argument(
                "--overwrite", action="store_true", help="write into a directory that holds files"
            )
        if name == "verify":
            command.add_argument("generation", nargs="?", default="latest", metavar="GENERATION")


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", default=DEFAULT_SET, metavar="NAME", help="backup set (%(default)s)")


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", metavar="TEXT", help="this NAS as the gateway's page shows it (host name)")


def _add_passphrase(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--passphrase-file", type=Path, metavar="FILE", help="mode 0600; default: ask")


def _add_kdf(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kdf-memory-mib",
        type=_kdf_memory,
        default=64,
        metavar="MIB",
        help="memory of Argon2id for the passphrase, 8 to 1024 MiB (%(default)s)",
    )


def _kdf_memory(text: str) -> int:
    value = int(text)
    if not 8 <= value <= 1024:
        raise argparse.ArgumentTypeError(f"expected 8 to 1024, got {value}")
    return value
