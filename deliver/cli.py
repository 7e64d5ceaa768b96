"""`deliver`: the carrier side (`init`, `serve`, `admin`) and the operator's tools (`pack`, `sign`, `submit`, …).

Exit codes: 0 done, 1 a fault, 2 configuration or usage, 3 refused by a rule.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from deliver.app import ROLES, parse_roles, serve
from deliver.commands.admin import add_admin_commands
from deliver.commands.operator import add_operator_commands
from deliver.config import CONFIG_NAME, DeliverConfig, check_files, load_home, parse_listen
from deliver.services.setup import make_carrier
from runtime.clock import SystemClock
from runtime.config import check_config
from runtime.errors import ConfigError, EdgeError
from runtime.supervise import Service, run_service
from wire.errors import WireError

EXIT_FAULT = 1
EXIT_CONFIG = ConfigError.exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIG
    except (EdgeError, WireError) as error:
        print(f"deliver: {error}", file=sys.stderr)
        return EXIT_FAULT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="deliver", description="Carrier side and operators' tools.")
    commands = parser.add_subparsers(dest="command", required=True)
    init = commands.add_parser("init", help="make keys, repositories, TLS, database and configuration, once")
    init.add_argument("directory", type=Path)
    init.add_argument(
        "--name", action="append", help="DNS name or address of the server certificate (repeat)"
    )
    init.add_argument("--gateway-listen", default=DeliverConfig().gateway_listen)
    init.add_argument("--operator-listen", default=DeliverConfig().operator_listen)
    init.add_argument("--metrics-listen", default=DeliverConfig().metrics_listen)
    init.add_argument("--poll-s", type=int, default=DeliverConfig().poll_s, help="how often gateways poll")
    init.set_defaults(run=run_init)
    serving = commands.add_parser("serve", help="serve gateways, NAS and operators")
    serving.add_argument("--config", type=Path, required=True, help="deliver.toml or its directory")
    serving.add_argument("--roles", default=",".join(ROLES), help=f"any of {', '.join(ROLES)} (default: all)")
    serving.add_argument("--check-config", action="store_true", help="print the configuration and stop")
    serving.set_defaults(run=run_serve)
    add_admin_commands(commands)
    add_operator_commands(commands)
    return parser


def run_init(arguments: argparse.Namespace) -> int:
    """Make everything in an empty directory and say what was made."""
    for key in ("gateway_listen", "operator_listen", "metrics_listen"):
        parse_listen(getattr(arguments, key), f"--{key.replace('_', '-')}")
    config = DeliverConfig(
        gateway_listen=arguments.gateway_listen,
        operator_listen=arguments.operator_listen,
        metrics_listen=arguments.metrics_listen,
        poll_s=arguments.poll_s,
    )
    names = arguments.name or ["localhost", "::1"]
    for made in make_carrier(arguments.directory.resolve(), config, names, now_s=SystemClock().now_s()):
        print(f"{made.what}: {made.where}")
    print(f"next: deliver serve --config {arguments.directory / CONFIG_NAME}")
    return 0


def run_serve(arguments: argparse.Namespace) -> int:
    """Serve until asked to stop."""
    roles = parse_roles(arguments.roles)
    home = load_home(arguments.config)
    check_files(home)
    if arguments.check_config:
        path = arguments.config
        return check_config(path / CONFIG_NAME if path.is_dir() else path, DeliverConfig)

    async def start(service: Service) -> None:
        await serve(home, roles, service)

    return run_service(start, name="deliver")


if __name__ == "__main__":
    sys.exit(main())
