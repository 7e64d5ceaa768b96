"""`make demo`: the main job, end to end, with the real programs in a lab of access lines.

Exit codes: 0 every step was verified; 1 a step failed (its cause is printed and in the report); 2 the machine cannot run it.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import tempfile
from pathlib import Path

from firmware_sim.demo import backup_steps, carrier_steps, software_steps
from firmware_sim.demo.report import Report
from firmware_sim.demo.world import DemoError, World
from firmware_sim.interrupt import stop_signals
from firmware_sim.lab import LAN_GATEWAY_IPV4, LabError, LabSpec, Process, open_lab
from firmware_sim.profile import DEFAULT_PROFILE, load_profile
from wire.units import MIB

REPORT_NAME = "demo-report.json"
IDLE_BUDGET_BYTES = 44 * MIB
FORWARDING_BUDGET_BYTES = 64 * MIB
_JST = dt.timezone(dt.timedelta(hours=9), "JST")


def run_demo(source: Path, *, keep: bool) -> int:
    """Run every step on `source`, print the report, write `demo-report.json` into the current directory."""
    source = source.resolve()
    if not source.is_dir():
        print(f"demo: {source} is not a directory")
        return 2
    # The default source is this very checkout: nothing of the demo may write into it while it is read.
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    report = Report()
    print(f"demo: deliver a package, back up {source}, cut the line, restore, compare, bill\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="hgwd-demo-") as scratch:
        return _run_in_lab(source, Path(scratch), report, keep=keep)


def _run_in_lab(source: Path, root: Path, report: Report, *, keep: bool) -> int:
    profile = load_profile(DEFAULT_PROFILE)
    status = 0
    with open_lab(LabSpec(lines=len(carrier_steps.CUSTOMERS), profile=profile)) as lab:
        world = World(lab, root)
        try:
            _steps(world, source, report)
        except (DemoError, LabError) as error:
            print(f"\ndemo: stopped: {error}")
            status = 1
        _print_end(report)
        report.write(Path(REPORT_NAME))
        if keep and status == 0:
            _wait(world)
    return status if report.verified else 1


def _steps(world: World, source: Path, report: Report) -> None:
    profile = load_profile(DEFAULT_PROFILE)
    with report.step("carrier: keys, repositories, lines") as step:
        carrier_steps.make_carrier(world, step)
    with report.step("carrier: serving"):
        carrier_steps.serve_carrier(world)
    with report.step(f"gateway: {profile.title} on its own line") as step:
        carrier_steps.write_gateway(world, 1, profile)
        daemon = carrier_steps.start_gateway(world, 1)
        carrier_steps.enrol_gateway(world, step)
    with report.step("line: intruders refused") as step:
        carrier_steps.refuse_intruders(world, step, profile)
    report.memory["hgwd_idle_bytes"] = _rss(daemon)
    with report.step("operator: pack, sign, quote, submit, roll out") as step:
        software_steps.submit_package(world, step)
    with report.step("gateway: pull, verify, install, start, report") as step:
        software_steps.await_install(world, step)
    with report.step("operator: a stranger's signature refused") as step:
        software_steps.refuse_foreign_package(world, step)
    with report.step("NAS: init, pair, enrol") as step:
        backup_steps.pair_nas(world, step)
    with report.step("NAS: back up through a line that is cut") as step:
        backup_steps.back_up_with_cut(world, source, step)
    report.memory["hgwd_peak_bytes"] = _peak(daemon)
    with report.step("NAS: back up again, unchanged") as step:
        backup_steps.back_up_again(world, source, step)
    with report.step("NAS: restore and compare") as step:
        backup_steps.restore_and_compare(world, source, step)
    with report.step("NAS: verify every byte") as step:
        backup_steps.verify_generation(world, step)
    with report.step("gateway: memory inside its budget") as step:
        _check_memory(world, daemon, report)
        step.note(f"hgwd idle {_mib(report, 'hgwd_idle_bytes')}, peak {_mib(report, 'hgwd_peak_bytes')}")
        step.note(f"all our processes on the gateway at once, at most {_mib(report, 'gateway_peak_bytes')}")
    with report.step("carrier: what it costs") as step:
        _bill(world, report)
        step.note("bills are a pure function of the recorded events and the dated tariff")
    report.pages["gateway admin page (from the NAS's LAN)"] = (
        f"http://{LAN_GATEWAY_IPV4}:{carrier_steps.ADMIN_PORT}/"
    )


def _check_memory(world: World, daemon: Process, report: Report) -> None:
    report.memory["hgwd_peak_bytes"] = _peak(daemon)
    report.memory["gateway_peak_bytes"] = world.lab.gateway(1).peak_bytes
    report.memory["limits"] = world.lab.limits_text()
    bars = {
        "hgwd_idle_bytes": IDLE_BUDGET_BYTES,
        "hgwd_peak_bytes": FORWARDING_BUDGET_BYTES,
        "gateway_peak_bytes": load_profile(DEFAULT_PROFILE).memory_budget_bytes,
    }
    for name, budget_bytes in bars.items():
        measured = report.memory[name]
        if not isinstance(measured, int) or not 0 < measured <= budget_bytes:
            raise DemoError(f"{name}: expected at most {budget_bytes}, measured {measured}")


def _bill(world: World, report: Report) -> None:
    today = dt.datetime.now(_JST).date()
    following = (today.replace(day=28) + dt.timedelta(days=4)).replace(day=1)
    for payer in (carrier_steps.CUSTOMERS[1], software_steps.OPERATOR):
        for month in (f"{today:%Y-%m}", f"{following:%Y-%m}"):
            bill = json.loads(world.admin("bill", "--payer", payer, "--month", month, "--json"))
            report.bill[f"{payer} {month}"] = bill
    if not any(isinstance(bill, dict) and bill.get("lines") for bill in report.bill.values()):
        raise DemoError("no bill has a line")


def _print_end(report: Report) -> None:
    print()
    for name, bill in report.bill.items():
        if not isinstance(bill, dict):
            continue
        print(f"  bill {name}: {bill['total_yen']:,} yen, tax included")
        for line in bill["lines"]:
            print(
                f"      {line['subject']:<34} {line['code']:<24}"
                f"{line['quantity']:>4} × {line['unit_yen']:>7,} = {line['amount_yen']:>8,} yen"
            )
    for name, address in report.pages.items():
        print(f"  page: {name}: {address}")
    seconds = sum(step.seconds for step in report.steps)
    verdict = "every step verified" if report.verified else "NOT verified"
    print(f"\n  {len(report.steps)} steps, {seconds:.1f} s: {verdict}; details in {REPORT_NAME}", flush=True)


def _wait(world: World) -> None:
    port = carrier_steps.ADMIN_PORT
    world.lab.publish("gw1", LAN_GATEWAY_IPV4, port, local_port=port)
    with stop_signals() as wait:
        print(f"\n  running; admin page http://127.0.0.1:{port}/, password {world.admin_password}")
        print(
            f"  the NAS's network: nsenter --net=/run/netns/{world.lab.nas(1).namespace}; files: {world.root}"
        )
        print("  Ctrl-C ends it", flush=True)
        wait()


def _rss(process: Process) -> int | None:
    usage = process.usage()
    return None if usage is None else usage.rss_bytes


def _peak(process: Process) -> int | None:
    usage = process.usage()
    return None if usage is None else usage.peak_bytes


def _mib(report: Report, name: str) -> str:
    measured = report.memory[name]
    return f"{measured / MIB:.1f} MiB" if isinstance(measured, int) else "not measured"
