"""firmware-sim: bring up the lab, boot a machine, build its image, run the demo.

Exit codes: 0 done, 1 it failed, 2 wrong usage or this machine cannot do it (one plain sentence), 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from firmware_sim.interrupt import stop_signals
from firmware_sim.lab import (
    Lab,
    LabError,
    LabSpec,
    LabUnavailableError,
    ensure_rights,
    live_runs,
    open_lab,
    remove_stale_runs,
)
from firmware_sim.profile import DEFAULT_PROFILE, Profile, ProfileError, load_profile, profile_names

_CHECK_TIMEOUT_S = 5.0
_DOWN_TIMEOUT_S = 20.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)
    try:
        return int(options.command(options, words))
    except (LabUnavailableError, ProfileError) as error:
        print(f"firmware-sim: {error}", file=sys.stderr)
        return 2
    except LabError as error:
        print(f"firmware-sim: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="firmware-sim", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="bring up a lab of access lines until Ctrl-C")
    up.add_argument("--lines", type=int, default=2, metavar="N", help="access lines, 1 to 200 (default 2)")
    up.add_argument(
        "--profile", default=DEFAULT_PROFILE, help=f"limits of the gateways (default {DEFAULT_PROFILE})"
    )
    up.add_argument("--check", action="store_true", help="check the lab itself and take it down again")
    up.set_defaults(command=_up)
    down = commands.add_parser("down", help="end running labs and remove what crashed ones left")
    down.set_defaults(command=_down)
    profiles = commands.add_parser("profiles", help="list the gateway profiles and what in them is assumed")
    profiles.set_defaults(command=_profiles)
    image = commands.add_parser("image", help="build the image of the emulated machine")
    image.add_argument("--profile", default=DEFAULT_PROFILE)
    image.set_defaults(command=_image)
    boot = commands.add_parser("boot", help="boot a profile as an arm64 machine and report what hgwd uses")
    boot.add_argument("--profile", default=DEFAULT_PROFILE)
    boot.set_defaults(command=_boot)
    demo = commands.add_parser("demo", help="the main job, end to end")
    demo.add_argument("--dir", type=Path, default=Path(), help="what to back up (default: here)")
    demo.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C")
    demo.set_defaults(command=_demo)
    return parser


def _up(options: argparse.Namespace, words: list[str]) -> int:
    profile = load_profile(options.profile)
    if not 1 <= options.lines <= 200:
        print(f"firmware-sim: --lines: expected 1 to 200, got {options.lines}", file=sys.stderr)
        return 2
    ensure_rights("firmware_sim.cli", words)
    with open_lab(LabSpec(lines=options.lines, profile=profile)) as lab:
        _print_lab(lab, profile)
        if options.check:
            return _check(lab)
        with stop_signals() as wait:
            print("running; Ctrl-C or `firmware-sim down` ends it", flush=True)
            wait()
    return 0


def _print_lab(lab: Lab, profile: Profile) -> None:
    print(f"lab {lab.run_id}: carrier {lab.carrier_address}; gateways: {profile.title}, {lab.limits_text()}")
    for line in range(1, lab.spec.lines + 1):
        addresses = lab.addresses(line)
        print(f"  line {line}: {addresses.prefix}  gateway {addresses.wan}, 192.168.1.1  NAS {addresses.nas}")
    print(f"  enter a host: nsenter --net=/run/netns/{lab.gateway(1).namespace}", flush=True)


def _check(lab: Lab) -> int:
    """Show that every line reaches the carrier, and that a forged source is dropped and counted."""
    for line in range(1, lab.spec.lines + 1):
        lab.forge(line, lab.addresses(line).wan)
        if lab.forged_packets():
            print(f"line {line}: its own address was taken for a forged one", file=sys.stderr)
            return 1
        seen = lab.nas(line).run(
            ["ip", "-6", "route", "get", lab.carrier_address], timeout_s=_CHECK_TIMEOUT_S
        )
        if lab.addresses(line).nas.encode() not in seen.stdout:
            print(f"line {line}: the NAS does not speak from its line's prefix", file=sys.stderr)
            return 1
    lab.forge(1, "2001:db8:ffff::1")
    deadline = time.monotonic() + _CHECK_TIMEOUT_S
    while lab.forged_packets() != 2:  # a SYN and a datagram
        if time.monotonic() > deadline:
            print("a forged source was not dropped", file=sys.stderr)
            return 1
        time.sleep(0.02)
    print(
        "check: every line routes to the carrier from its own prefix; a forged source is dropped and counted"
    )
    return 0


def _down(_: argparse.Namespace, words: list[str]) -> int:
    ensure_rights("firmware_sim.cli", words)
    running = live_runs()
    for run, owner in running.items():
        print(f"ending lab {run} (process {owner})")
        os.kill(owner, signal.SIGTERM)
    deadline = time.monotonic() + _DOWN_TIMEOUT_S
    while set(live_runs()) & set(running):
        if time.monotonic() > deadline:
            print(f"firmware-sim: still running: {', '.join(live_runs())}", file=sys.stderr)
            return 1
        time.sleep(0.05)
    for run in remove_stale_runs():
        print(f"removed what lab {run} left")
    return 0


def _profiles(_: argparse.Namespace, __: list[str]) -> int:
    for name in profile_names():
        profile = load_profile(name)
        print(f"{profile.name}: {profile.title}; fronts: {', '.join(profile.fronts)}")
        for front, why in profile.fronts_off.items():
            print(f"    {front} is off: {why}")
        for key, fact in profile.facts().items():
            print(f"    {key} = {fact.value}{'  (assumed)' if fact.assumed else ''}: {fact.why}")
    return 0


def _image(options: argparse.Namespace, _: list[str]) -> int:
    from firmware_sim.boot import ImageError, build_image

    profile = load_profile(options.profile)
    try:
        image = build_image(profile)
    except ImageError as error:
        print(f"firmware-sim: {error}", file=sys.stderr)
        return 1
    share = 100 * image.root_bytes / (profile.slot_mib.value << 20)
    print(f"{image.root}: {image.root_bytes:,} bytes, {share:.0f} % of a {profile.slot_mib.value} MiB slot")
    return 0


def _boot(options: argparse.Namespace, _: list[str]) -> int:
    from firmware_sim.boot import ImageError, MachineError, show_boot

    profile = load_profile(options.profile)
    try:
        with tempfile.TemporaryDirectory(prefix="hgwboot-") as scratch:
            show_boot(profile, Path(scratch))
    except (ImageError, MachineError) as error:
        print(f"firmware-sim: {error}", file=sys.stderr)
        return 1
    return 0


def _demo(options: argparse.Namespace, words: list[str]) -> int:
    if os.geteuid() != 0:
        text = (
            "demo: delivered software gets a user and a cgroup of its own: run it as root (`up` runs without)"
        )
        print(text, file=sys.stderr)
        return 2
    ensure_rights("firmware_sim.cli", words)
    demo = importlib.import_module("firmware_sim.demo")
    return int(demo.run_demo(options.dir, keep=options.keep))


if __name__ == "__main__":
    sys.exit(main())
