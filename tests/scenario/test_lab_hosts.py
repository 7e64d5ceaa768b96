"""Hosts of the lab: processes, limits, power cuts, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from firmware_sim.lab import (
    Lab,
    LabSpec,
    ProcessEndedError,
    has_rights,
    live_runs,
    open_lab,
    remove_stale_runs,
)
from firmware_sim.profile import load_profile

pytestmark = pytest.mark.skipif(not has_rights(), reason="the lab makes network namespaces: needs root")

MIB = 1 << 20
NETNS = Path("/run/netns")
PROFILE = load_profile("PR-500")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with open_lab(LabSpec(lines=1, profile=PROFILE)) as lab:
        yield lab


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-u", "-c", code]


def listen(lab: Lab, port: int) -> socket.socket:
    return socket.create_server((lab.carrier_address, port), family=socket.AF_INET6)


def wait_until(condition, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def traces(run_id: str) -> list[str]:
    places = (NETNS, Path("/run/hgwlab"), Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory"))
    return [
        str(entry) for place in places if place.is_dir() for entry in place.iterdir() if run_id in entry.name
    ]


def test_a_process_is_awaited_by_its_lines_in_order(lab: Lab) -> None:
    process = lab.carrier.spawn(python("print('ready'); import time; time.sleep(0.05); print('ready again')"))
    assert process.wait_for_line("^ready", timeout_s=10) == "ready"
    assert process.wait_for_line("^ready", timeout_s=10) == "ready again"
    assert process.wait(10) == 0


def test_a_process_that_ends_instead_of_getting_ready_is_an_error_with_its_last_words(lab: Lab) -> None:
    process = lab.carrier.spawn(python("import sys; print('no such key'); sys.exit(2)"), name="broken")
    with pytest.raises(ProcessEndedError, match=r"(?s)carrier/broken: ended with 2.*no such key"):
        process.wait_for_line("ready", timeout_s=10)


def test_a_killed_process_says_so_and_its_host_lives(lab: Lab) -> None:
    process = lab.carrier.spawn(python("print('ready'); import time; time.sleep(60)"))
    process.wait_for_line("ready", timeout_s=10)
    assert process.kill() == -signal.SIGKILL
    assert not process.alive
    assert lab.carrier.powered


def test_a_process_may_end_by_itself_when_asked(lab: Lab) -> None:
    code = "import signal, sys; signal.signal(15, lambda *_: sys.exit(7)); print('ready'); signal.pause()"
    process = lab.carrier.spawn(python(code))
    process.wait_for_line("ready", timeout_s=10)
    assert process.terminate() == 7


def test_a_program_can_run_without_root(lab: Lab) -> None:
    done = lab.carrier.run(["id", "-un"], timeout_s=10, user="nobody")
    assert done.stdout == b"nobody\n"


def test_a_run_over_its_time_is_ended_and_says_so(lab: Lab) -> None:
    with pytest.raises(ProcessEndedError, match=r"nas1: sleep 4245 still running after 0.3 s"):
        lab.nas(1).run(["sleep", "4245"], timeout_s=0.3)
    wait_until(lambda: not any(usage.command == "sleep" for usage in lab.nas(1).usages()))


def test_a_host_sees_only_its_own_processes(lab: Lab) -> None:
    seen = lab.nas(1).run(["sh", "-c", "ls /proc | grep -c '^[0-9]'"], timeout_s=10).stdout
    assert int(seen) < 8


def test_the_peak_of_resident_memory_is_seen_after_it_has_passed(lab: Lab) -> None:
    code = f"a = bytearray({40 * MIB}); print('big'); del a; print('small'); import time; time.sleep(60)"
    process = lab.nas(1).spawn(python(code))
    process.wait_for_line("small", timeout_s=10)
    usage = process.usage()
    assert usage is not None
    assert usage.peak_bytes > 40 * MIB > usage.rss_bytes
    process.kill()
    assert process.usage() == usage


def test_the_sum_over_a_host_counts_what_its_programs_forked(lab: Lab) -> None:
    code = f"import os, time; os.fork(); a = bytearray({20 * MIB}); print('big'); time.sleep(60)"
    process = lab.nas(1).spawn(python(code))
    process.wait_for_line("big", timeout_s=10)
    process.wait_for_line("big", timeout_s=10)
    assert sum(usage.rss_bytes for usage in lab.nas(1).usages()) > 40 * MIB
    assert lab.nas(1).peak_bytes > 40 * MIB
    lab.nas(1).power_cut()
    assert lab.nas(1).usages() == []


def test_what_runs_in_the_sandbox_is_counted_apart_and_shared_pages_once(lab: Lab) -> None:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    nas = lab.nas(1)
    nas.power_cut()
    nas.peak_bytes = nas.software_peak_bytes = 0
    big = f"a = bytearray({30 * MIB}); print('big'); import time; time.sleep(60)"
    inside = ["bwrap", "--dev-bind", "/", "/", "--unshare-pid", "--die-with-parent", *python(big)]
    nas.spawn(inside, name="software").wait_for_line("big", timeout_s=10)
    # 30 MiB touched, then forked: two processes share the same pages.
    forked = f"import os, time; a = bytearray({30 * MIB}); os.fork(); print('big'); time.sleep(60)"
    ours = nas.spawn(python(forked), name="ours")
    ours.wait_for_line("big", timeout_s=10)
    ours.wait_for_line("big", timeout_s=10)
    nas.usages()
    assert 30 * MIB < nas.software_peak_bytes < 60 * MIB
    assert 30 * MIB < nas.peak_bytes < 60 * MIB
    nas.power_cut()


def test_a_gateway_process_over_the_profile_memory_is_killed_and_counted(lab: Lab) -> None:
    if "cgroup" not in lab.limits_text():
        pytest.skip(lab.limits_text())
    over = PROFILE.memory_limit_bytes + 8 * MIB
    greedy = lab.gateway(1).spawn(python(f"a = bytearray({over}); print('unbounded')"))
    assert greedy.wait(30) == -signal.SIGKILL
    assert lab.gateway(1).limiter.oom_kills() == 1


def test_a_gateway_gets_only_the_processor_share_of_its_profile(lab: Lab) -> None:
    if "CPU share" not in lab.limits_text() or "no CPU share" in lab.limits_text():
        pytest.skip(lab.limits_text())
    code = "import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass\nprint(time.process_time())"
    used_s = float(lab.gateway(1).run(python(code), timeout_s=30).stdout)
    assert used_s < 1 * PROFILE.cpu_percent.value / 100 + 0.15


def test_a_power_cut_ends_even_what_hid_in_other_namespaces_and_sends_no_farewell(lab: Lab) -> None:
    server = lab.carrier.call(
        lambda: socket.create_server((lab.carrier_address, 7001), family=socket.AF_INET6)
    )
    code = (
        "import socket, subprocess, time\n"
        f"s = socket.create_connection(('{lab.carrier_address}', 7001))\n"
        "subprocess.Popen(['unshare', '--pid', '--net', '--fork', 'sleep', '4242'], start_new_session=True)\n"
        "print('ready'); time.sleep(60)"
    )
    process = lab.nas(1).spawn(python(code))
    process.wait_for_line("ready", timeout_s=10)
    connection, _ = server.accept()
    wait_until(lambda: any(usage.command == "sleep" for usage in lab.nas(1).usages()))
    pids = [usage.pid for usage in lab.nas(1).usages()]
    lab.nas(1).power_cut()
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert process.exit_status == -signal.SIGKILL
    connection.settimeout(1.5)  # a FIN kept back would come at the next retransmission, within a second
    with pytest.raises(TimeoutError):
        connection.recv(1)
    connection.close()
    server.close()
    assert lab.nas(1).run(["echo", "back"], timeout_s=10).stdout == b"back\n"


def test_two_labs_at_once_do_not_meet() -> None:
    def reach(lab: Lab, port: int) -> int:
        code = f"import socket; socket.create_connection(('{lab.carrier_address}', {port}), 2)"
        return lab.nas(1).run(python(code), timeout_s=20, check=False).returncode

    with open_lab(LabSpec(lines=1)) as one, open_lab(LabSpec(lines=1)) as two:
        assert {one.run_id, two.run_id} <= set(live_runs())
        servers = [
            lab.carrier.call(lambda lab=lab, port=port: listen(lab, port))
            for lab, port in ((one, 7002), (two, 7003))
        ]
        assert (reach(one, 7002), reach(two, 7003)) == (0, 0)
        assert (reach(one, 7003), reach(two, 7002)) == (1, 1)
        one.cut(1)
        assert (reach(one, 7002), reach(two, 7003)) == (1, 0)
        for server in servers:
            server.close()


def test_nothing_is_left_of_a_lab_not_even_after_an_error_inside() -> None:
    with pytest.raises(ZeroDivisionError), open_lab(LabSpec(lines=2, profile=PROFILE)) as lab:
        daemon = lab.gateway(1).spawn(["sleep", "4243"])
        assert traces(lab.run_id)
        raise ZeroDivisionError
    assert not daemon.alive
    assert traces(lab.run_id) == []


def test_a_killed_owner_leaves_no_process_and_the_next_lab_removes_the_rest(tmp_path: Path) -> None:
    code = (
        "import signal\n"
        "from firmware_sim.lab import LabSpec, open_lab\n"
        "from firmware_sim.profile import load_profile\n"
        "with open_lab(LabSpec(lines=1, profile=load_profile('PR-500'))) as lab:\n"
        "    process = lab.gateway(1).spawn(['sleep', '4244'])\n"
        "    print(lab.run_id, process.pid, flush=True)\n"
        "    signal.pause()\n"
    )
    repository = Path(__file__).resolve().parents[2]
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(repository), "TMPDIR": str(tmp_path)},
    )
    assert owner.stdout is not None
    run_id, pid = owner.stdout.readline().decode().split()
    assert live_runs()[run_id] == owner.pid
    assert run_id not in remove_stale_runs()
    assert traces(run_id)
    owner.kill()
    owner.communicate()
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    with open_lab(LabSpec(lines=1)):
        assert traces(run_id) == []
