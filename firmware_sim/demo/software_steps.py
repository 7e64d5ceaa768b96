"""Software goes down: an operator packs, signs, sees the price and submits; the gateway installs and reports."""

from __future__ import annotations

import json
import zipapp
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path

from firmware_sim.demo.carrier_steps import CUSTOMERS, OPERATOR_PORT
from firmware_sim.demo.report import Step
from firmware_sim.demo.world import DemoError, World, find, wait_until

OPERATOR = "demo-operator"
SOFTWARE = f"{OPERATOR}/box-report"
VERSION = "1.0.0"
INSTALL_TIMEOUT_S = 90.0


def submit_package(world: World, step: Step) -> None:
    """Key ceremony, pack, sign, quote, submit, roll out to line 1."""
    state = world.operator
    state.mkdir()
    for name in ("signing", "api"):
        world.deliver("key", state / f"{name}.key", "--role", name)
    world.admin(
        *("operator", "add", OPERATOR),
        *("--api-key", state / "api.key.pub", "--key", state / "signing.key.pub"),
    )
    world.admin("ceremony", "shard")
    package = state / "box-report.hgwpkg"
    world.deliver("pack", make_source(state / "source"), "-o", package)
    step.size_bytes = package.stat().st_size
    world.deliver("sign", package, "--key", state / "signing.key", "--state", state)
    server = (
        *("--server", f"https://[::1]:{OPERATOR_PORT}", "--ca", world.carrier / "trust" / "tls-ca.pem"),
        *("--api-key", state / "api.key"),
    )
    quote = world.deliver("submit", package, "--state", state, "--quote-only", *server)
    step.note(f"quote before submitting: {' '.join(find(r'(monthly.*)', quote).split())}")
    world.deliver("submit", package, "--state", state, "--yes", *server)
    world.deliver("rollout", SOFTWARE, VERSION, CUSTOMERS[1], *server)
    step.note("signed with the operator's own key, delegated in its shard, rolled out to one line")


def make_source(target: Path, *, version: str = VERSION, release: int = 1) -> Path:
    """Lay out the sample software as an operator's build would: manifest and one zipapp."""
    with resources.as_file(resources.files("firmware_sim.demo") / "software") as sample:
        target.mkdir()
        manifest = (sample / "manifest.toml").read_text(encoding="utf-8")
        manifest = manifest.replace(f'version = "{VERSION}"', f'version = "{version}"')
        manifest = manifest.replace("release = 1", f"release = {release}")
        (target / "manifest.toml").write_text(manifest, encoding="utf-8")
        zipapp.create_archive(sample / "app", target / "app.pyz")
    return target


def await_install(world: World, step: Step) -> None:
    """Wait until the gateway has verified, installed and started it, and the carrier has the signed report."""

    def active() -> bool:
        for item in _softwares(world):
            if item.get("fault"):
                raise DemoError(f"the gateway reports fault {item['fault']} for {item.get('software')}")
            if item.get("state") == "Active":
                return True
        return False

    wait_until("the software active on the gateway", active, INSTALL_TIMEOUT_S)
    step.note("director and image repository verified, installed in a slot, started isolated, healthy")

    def reported() -> bool:
        rows = json.loads(world.admin("targets", "--json"))["installed"]
        return any(row["version"] == VERSION and row["state"] == "Active" for row in rows)

    wait_until("the gateway's signed report", reported, INSTALL_TIMEOUT_S)
    step.note("signed report received by the carrier")


def _softwares(world: World) -> Iterator[Mapping[str, object]]:
    update = world.gateway_status(1).get("update")
    listed = update.get("software") if isinstance(update, dict) else None
    for item in listed or []:
        if isinstance(item, dict):
            yield item


def refuse_foreign_package(world: World, step: Step) -> None:
    """A newer version signed by somebody else's key is refused at the door."""
    state = world.root / "impostor"
    state.mkdir()
    world.deliver("key", state / "signing.key")
    package = state / "box-report.hgwpkg"
    world.deliver("pack", make_source(state / "source", version="1.0.1", release=2), "-o", package)
    world.deliver("sign", package, "--key", state / "signing.key", "--state", state)
    words = (
        *("submit", package, "--state", state, "--yes", "--change", "change"),
        *("--server", f"https://[::1]:{OPERATOR_PORT}", "--ca", world.carrier / "trust" / "tls-ca.pem"),
        *("--api-key", world.operator / "api.key"),
    )
    world.deliver(*words, expect=3)
    if not any(item.get("state") == "Active" for item in _softwares(world)):
        raise DemoError("the running software was disturbed by a refused submit")
    step.note("version 1.0.1 signed by a stranger's key: refused; the running version goes on")
