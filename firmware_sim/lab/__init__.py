"""Run the real programs in network namespaces: one carrier, and lines with a gateway and a NAS each.

    with open_lab(LabSpec(lines=2, profile=load_profile("PR-500"))) as lab:
        deliver = lab.carrier.spawn([sys.executable, "-m", "deliver.cli", "serve", …], name="deliver")
        deliver.wait_for_line("ready", timeout_s=20)
        hgwd = lab.gateway(1).spawn([…], name="hgwd")        # inside the profile's memory and CPU share
        lab.nas(1).run([…, "backup", …], timeout_s=120)       # to its end; exit status and outputs back
        lab.cut(1); lab.restore(1)                            # link down; Cut.SILENT lets packets vanish instead
        lab.set_faults(1, LineFaults(loss_permille=50, rate_bits_per_s=8_000_000))
        lab.renumber(1)                                       # new /56; tell the carrier's registry too
        lab.gateway(1).power_cut()                            # kill -9 of the whole tree, no farewell packets
        hgwd.kill(); hgwd.usage().peak_bytes; lab.gateway(1).peak_bytes; lab.gateway(1).usages()
        page = lab.nas(1).call(lambda: urlopen("https://192.168.1.1/…").read())   # Python code from the LAN
        lab.publish("gw1", "192.168.1.1", 8444)               # → port on this machine's 127.0.0.1, for a browser
        lab.forge(2, source=lab.addresses(1).wan); lab.forged_packets()            # dropped and counted: 2

Addresses: `lab.carrier_address`; per line `lab.addresses(n)` with `.prefix` (/56), `.wan`, `.lan_prefix`, `.nas`,
`.ula_gateway`, `.ula_nas`; on every LAN `LAN_GATEWAY_IPV4` and `LAN_NAS_IPV4`. Logs: `lab.directory/logs`.
Before it, once per program: `ensure_rights(module, arguments)` (root, or a user namespace, or a plain sentence).
The API is synchronous; from trio, call it in a worker thread. Everything is removed when the context ends; when the
owner is killed instead, the kernel ends the hosts and the next `open_lab` or `firmware-sim down` removes the rest.
"""

from __future__ import annotations

from firmware_sim.faults import HEALTHY, Cut, LineFaults
from firmware_sim.lab.errors import LabError, LabUnavailableError, ProcessEndedError
from firmware_sim.lab.host import Host
from firmware_sim.lab.lab import Lab, LabSpec, open_lab
from firmware_sim.lab.memory import Usage
from firmware_sim.lab.privilege import ensure_rights, has_rights
from firmware_sim.lab.process import Process
from firmware_sim.lab.runs import live_runs, remove_stale_runs
from firmware_sim.lab.topology import LAN_GATEWAY_IPV4, LAN_NAS_IPV4, LineAddresses

__all__ = [
    "HEALTHY",
    "LAN_GATEWAY_IPV4",
    "LAN_NAS_IPV4",
    "Cut",
    "Host",
    "Lab",
    "LabError",
    "LabSpec",
    "LabUnavailableError",
    "LineAddresses",
    "LineFaults",
    "Process",
    "ProcessEndedError",
    "Usage",
    "ensure_rights",
    "has_rights",
    "live_runs",
    "open_lab",
    "remove_stale_runs",
]
