"""Backups go up: pair, back up through the gateway, lose the line in the middle, restore, compare."""

from __future__ import annotations

import secrets
import subprocess
import time
from pathlib import Path

from firmware_sim.demo.carrier_steps import ADMIN_PORT, CONTRACT, LAN_PORT, opening_notice
from firmware_sim.demo.human import AdminVisitor
from firmware_sim.demo.report import Step
from firmware_sim.demo.world import COMMAND_TIMEOUT_S, DemoError, Events, World, wait_until
from firmware_sim.lab import LAN_GATEWAY_IPV4, LineFaults, Process
from wire.units import MIB

LINE_RATE_BITS_PER_S = 400_000_000
CUT_AFTER_BYTES = 8 * MIB
CUT_S = 5.0
BACKUP_TIMEOUT_S = 600.0


def pair_nas(world: World, step: Step) -> None:
    """`nas-agent init` and `pair`; a person compares the digits on the gateway's page and approves."""
    passphrase = passphrase_file(world)
    passphrase.write_text(secrets.token_hex(16) + "\n", encoding="ascii")
    passphrase.chmod(0o600)
    notice = opening_notice(world)
    world.nas_agent("init", "--contract", CONTRACT, "--passphrase-file", passphrase, "--name", "demo-nas")
    words = (
        *("pair", "--gateway", f"{LAN_GATEWAY_IPV4}:{LAN_PORT}", "--contract", CONTRACT),
        *("--enrolment-code", notice["enrolment_code"], "--service-root", notice["service_root"]),
        *("--passphrase-file", passphrase, "--name", "demo-nas", "--state", world.nas, "--json"),
    )
    pairing = world.start(world.lab.nas(1), "nas_agent.cli", *words, name="pair")
    wait_until("the six digits", lambda: bool(events_of(pairing).of("digits")), COMMAND_TIMEOUT_S)
    digits = str(events_of(pairing).last("digits")["digits"])
    visitor = AdminVisitor(LAN_GATEWAY_IPV4, ADMIN_PORT)

    def approve() -> None:
        visitor.log_in(world.admin_password)
        visitor.approve(digits)

    world.lab.nas(1).call(approve)
    if pairing.wait(COMMAND_TIMEOUT_S) != 0:
        raise DemoError(f"nas-agent pair: {pairing.output()[-800:]}")
    step.note("six digits equal on NAS and gateway page, approved behind the admin password")
    step.note("NAS enrolled at the service with the opening notice's code, from the contract's line")


def back_up_with_cut(world: World, source: Path, step: Step) -> None:
    """First backup; the line is cut in the middle and joined again; nothing is done by hand."""
    lab = world.lab
    lab.set_faults(1, LineFaults(rate_bits_per_s=LINE_RATE_BITS_PER_S))
    small = tree_bytes(source) < 4 * CUT_AFTER_BYTES
    if small:
        lab.cut(1)
    backup = world.start(
        lab.nas(1), "nas_agent.cli", "backup", source, "--state", world.nas, "--json", name="backup"
    )

    def far_enough() -> bool:
        if not backup.alive:
            raise DemoError(f"the backup ended before the cut: {backup.output()[-800:]}")
        progress = events_of(backup).of("progress")
        return bool(progress) and int(str(progress[-1]["sent_bytes"])) >= CUT_AFTER_BYTES

    if not small:
        wait_until("the backup under way", far_enough, BACKUP_TIMEOUT_S)
        lab.cut(1)
    time.sleep(CUT_S)
    if not backup.alive:
        raise DemoError(f"the backup did not outlive the cut: {backup.output()[-800:]}")
    waiting = [str(item["code"]) for item in events_of(backup).of("waiting")]
    lab.restore(1)
    status = backup.wait(BACKUP_TIMEOUT_S)
    result = events_of(backup).last("backup") if status in {0, 3} else {}
    if status != 0 or result.get("state") != "durable":
        raise DemoError(f"nas-agent backup ended with {status}: {backup.output()[-800:]}")
    place = "before the first byte" if small else "in the middle"
    step.size_bytes = int(str(result["sent_bytes"]))
    step.note(
        f"line cut {place} for {CUT_S:.0f} s (agent: {', '.join(sorted(set(waiting))) or 'spooling'}), then resumed"
    )
    step.note(
        f"durable: {result['files']} files, {result['logical_bytes']} bytes, receipt verified under the service root"
    )


def back_up_again(world: World, source: Path, step: Step) -> None:
    """Nothing changed: nothing is read or sent but the new generation's head."""
    result = world.nas_agent("backup", source, timeout_s=BACKUP_TIMEOUT_S).last("backup")
    if result["state"] != "durable" or result["sequence"] != 2:
        raise DemoError(f"second backup: {result}")
    step.size_bytes = int(str(result["sent_bytes"]))
    step.note(
        f"{result['files_unchanged']} of {result['files']} files unchanged, {result['read_bytes']} bytes read"
    )


def restore_and_compare(world: World, source: Path, step: Step) -> None:
    """Restore on the NAS with the owner's passphrase; rsync, which knows nothing of us, compares."""
    target = world.root / "restored"
    result = world.nas_agent(
        *("restore", "latest", "--to", target, "--passphrase-file", passphrase_file(world)),
        timeout_s=BACKUP_TIMEOUT_S,
    ).last("restore")
    step.size_bytes = int(str(result["restored_bytes"]))
    judge = ["rsync", "-aHAXSn", "--checksum", "--delete", "-i", f"{source}/", f"{target}/"]
    done = subprocess.run(judge, capture_output=True, text=True, check=False)
    if done.returncode != 0 or done.stdout:
        raise DemoError(f"rsync sees differences: {(done.stdout + done.stderr)[:800]}")
    step.note(f"{result['files']} files; rsync -aHAXSn --checksum --delete finds no difference")


def verify_generation(world: World, step: Step) -> None:
    """`nas-agent verify`: every byte of the newest generation is read and checked."""
    result = world.nas_agent(
        "verify", "--passphrase-file", passphrase_file(world), timeout_s=BACKUP_TIMEOUT_S
    ).last("restore")
    step.size_bytes = int(str(result["restored_bytes"]))
    step.note("every chunk authenticated and its ID recomputed")


def passphrase_file(world: World) -> Path:
    """The owner's passphrase."""
    return world.root / "passphrase"


def events_of(process: Process) -> Events:
    """Return the whole lines a running `nas-agent --json` has printed."""
    text = process.output()
    return Events.parse(text[: text.rfind("\n") + 1])


def tree_bytes(source: Path) -> int:
    """Return the bytes of the regular files below a directory, roughly: what vanishes meanwhile counts 0."""
    done = subprocess.run(["du", "-sb", str(source)], capture_output=True, text=True, check=False)
    return int(done.stdout.split()[0]) if done.stdout else 0
