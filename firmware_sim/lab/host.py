"""A host of the lab: a network namespace, and, while powered on, a PID and mount namespace with a small init.

Rules
- Everything started on a host descends from it: a power cut ends the whole tree at once, whatever it forked,
  daemonised or put into namespaces of its own.
- The init lives on a pipe from the lab's process. When that process ends, however it ends, the kernel ends the host.
- A power cut is silent: the network goes first, so that no peer gets a farewell (FIN, RST) that a real cut never sends.

Files are the machine's own: nothing of the disk is emulated here, and kill -9 does not lose the page cache.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from firmware_sim.lab.commands import nft, run_tool
from firmware_sim.lab.errors import LabError, ProcessEndedError
from firmware_sim.lab.limits import Limiter
from firmware_sim.lab.memory import Usage, children_of, descendants, read_footprint_bytes, read_usage
from firmware_sim.lab.process import Process

# dash reaps orphans while it waits for cat, and cat ends with the pipe: the smallest init that does both.
_INIT = "echo on; cat >/dev/null"
_INIT_COMMAND = "cat"
SANDBOX_COMMAND = "bwrap"
_SILENCE = """\
table inet lab_power {
  chain out { type filter hook output priority -400; policy drop; }
  chain in { type filter hook input priority -400; policy drop; }
}
"""
_CLONE_NEWNET = 0x40000000

T = TypeVar("T")


class Host:
    """One host. Methods may be called from any thread, one at a time."""

    def __init__(self, name: str, namespace: str, limiter: Limiter, logs: Path) -> None:
        self.name = name
        self.namespace = namespace
        self.limiter = limiter
        self.processes: list[Process] = []
        self.peak_bytes = 0
        self.software_peak_bytes = 0
        self._logs = logs
        self._power: subprocess.Popen[bytes] | None = None
        self._init = 0
        self._started = 0

    @property
    def powered(self) -> bool:
        """Tell whether the host is on."""
        return self._power is not None and self._power.poll() is None

    def power_on(self) -> None:
        """Start the host's init; does nothing when it is on. `spawn` and `run` do it by themselves."""
        if self.powered:
            return
        power = subprocess.Popen(
            [
                *self._network(),
                *("unshare", "--pid", "--fork", "--mount-proc", "--kill-child"),
                *("--", "sh", "-c", _INIT),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        if power.stdout is None or power.stdout.readline() != b"on\n":
            error = power.communicate()[1].decode("utf-8", "replace")
            raise LabError(f"lab: host {self.name} did not start: {error.strip()}")
        # The init first: whoever finds the host powered (the sampler's thread) may look for what descends from it.
        self._init = children_of(power.pid)[0]
        self._power = power

    def power_cut(self) -> None:
        """End everything on the host at once, without a farewell to its peers, and leave it off.

        The network works again as soon as the host is off: what arrives then is answered by nobody (RST by the
        kernel), as by a machine that has just come back.
        """
        if not self.powered:
            return
        nft(self.namespace, _SILENCE)
        try:
            self._end()
            # The kernel would go on sending the dead programs' FINs later: destroy their sockets in the silence.
            run_tool([*self._network(), "ss", "--kill", "--tcp", "--all"])
        finally:
            nft(self.namespace, "delete table inet lab_power\n")

    def power_off(self) -> None:
        """End everything on the host, peers told by the kernel; safe to call twice."""
        if self.powered:
            self._end()

    def _end(self) -> None:
        if self._power is None:
            return
        os.kill(self._init, signal.SIGKILL)
        self._power.communicate()  # returns when the kernel has ended every process of the PID namespace
        for process in self.processes:
            process.wait(10)
        self.processes.clear()

    def spawn(
        self,
        argv: Sequence[str],
        *,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: str | None = None,
    ) -> Process:
        """Start a program on this host, inside its limits, and return at once.

        Args:
            argv: program and arguments; nothing is passed through a shell.
            name: short name for logs and errors; the program's file name when None.
            env: the whole environment; the lab's own when None.
            cwd: working directory; the lab's own when None.
            user: run as this user, with its groups and no capabilities; as the lab's own user when None.

        Raises:
            LabError: the host or the launcher could not start. A program that fails at once is not an error here.
        """
        self.power_on()
        self._started += 1
        label = name or Path(argv[0]).name
        log = self._logs / f"{self.name}-{self._started:04d}-{label}.log"
        with log.open("wb") as output:
            launcher = subprocess.Popen(
                self._command(argv, cwd, user),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )
        process = Process(f"{self.name}/{label}", launcher, log)
        self.processes = [*(other for other in self.processes if other.alive), process]
        return process

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        check: bool = True,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: str | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program on this host to its end and return exit status and outputs.

        Raises:
            ProcessEndedError: it did not end within `timeout_s`, or, with `check`, its exit status is not 0.
        """
        self.power_on()
        pipe = subprocess.PIPE
        with subprocess.Popen(
            self._command(argv, cwd, user), stdin=pipe, stdout=pipe, stderr=pipe, env=env
        ) as launcher:
            try:
                output, errors = launcher.communicate(stdin, timeout=timeout_s)
            except subprocess.TimeoutExpired as error:
                # The launcher alone would leave the program behind: nsenter passes no signal on.
                for pid in descendants([launcher.pid]):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                words = f"{self.name}: {' '.join(argv)} still running after {timeout_s} s"
                raise ProcessEndedError(words) from error
        if check and launcher.returncode != 0:
            words = (output + errors).decode("utf-8", "replace").strip()
            raise ProcessEndedError(
                f"{self.name}: {' '.join(argv)} ended with {launcher.returncode}: {words}"
            )
        return subprocess.CompletedProcess(list(argv), launcher.returncode, output, errors)

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in a thread of this process that stands in the host's network; return what it returns.

        Sockets it makes belong to the host for ever. Only the network is the host's: files and processes are not.
        """
        results: list[T] = []
        errors: list[BaseException] = []

        def inside() -> None:
            try:
                enter_network(self.namespace)
                results.append(function())
            except BaseException as error:  # noqa: BLE001 - carried to the caller's thread and raised there
                errors.append(error)

        thread = threading.Thread(target=inside, name=f"lab-{self.name}", daemon=True)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def usages(self) -> list[Usage]:
        """Return what each process on the host uses now, the host's init left out; notes the sums' peaks.

        `peak_bytes` is of our programs, `software_peak_bytes` of what they run for others, inside bubblewrap: the
        budgets of design §9 hold for the first, delivered software apart.
        """
        if not self.powered:
            return []
        pids = descendants([self._init, *(process.pid for process in self.processes if process.alive)])
        found = [usage for pid in sorted(pids - {self._init}) if (usage := read_usage(pid))]
        found = [usage for usage in found if usage.command != _INIT_COMMAND]
        software = descendants(usage.pid for usage in found if usage.command == SANDBOX_COMMAND)
        ours_bytes = software_bytes = 0
        for usage in found:
            if usage.pid in software:
                software_bytes += read_footprint_bytes(usage.pid)
            else:
                ours_bytes += read_footprint_bytes(usage.pid)
        self.peak_bytes = max(self.peak_bytes, ours_bytes)
        self.software_peak_bytes = max(self.software_peak_bytes, software_bytes)
        return found

    def _network(self) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.namespace}"]

    def _command(self, argv: Sequence[str], cwd: Path | None, user: str | None) -> list[str]:
        namespaces = [f"--pid=/proc/{self._init}/ns/pid", f"--mount=/proc/{self._init}/ns/mnt"]
        place = [f"--wd={cwd or Path.cwd()}"]
        identity = [] if user is None else _identity(user)
        return [*self.limiter.prefix(), *self._network(), *namespaces, *place, "--", *identity, *argv]


def _identity(user: str) -> list[str]:
    entry = pwd.getpwnam(user)
    return ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--init-groups", "--"]


def enter_network(namespace: str) -> None:
    """Move the calling thread into a host's network, for good.

    Raises:
        LabError: no such namespace, or no right to enter it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(handle, _CLONE_NEWNET) != 0:
            raise LabError(f"lab: cannot enter {namespace}: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(handle)
