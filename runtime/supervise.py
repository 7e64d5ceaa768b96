"""Run one program: signals, graceful stop within a bounded time, readiness, exit codes.

Rules: SIGTERM and SIGINT ask once for a graceful stop (`Service.stopping` is set) and cancel everything when
the grace time is over or a second one comes; SIGHUP does nothing. Readiness is one JSON log line
`{"event":"ready",…}`. Exit codes: 0 stopped as asked, 1 a fault, 2 configuration.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Awaitable, Callable

import attrs
import trio

from runtime.errors import ConfigError
from runtime.http.connection import place_of, sole_cause
from runtime.logs import Logger, get_logger

STOP_GRACE_S = 15.0
EXIT_OK = 0
EXIT_FAULT = 1
EXIT_CONFIG = ConfigError.exit_code


@attrs.frozen
class Service:
    """What a program's main task gets."""

    log: Logger
    stopping: trio.Event = attrs.field(factory=trio.Event)

    def ready(self, **facts: object) -> None:
        """Say that the program does its job now; `facts` such as ports are read by tests and supervisors."""
        self.log.info("ready", **facts)


ServiceMain = Callable[[Service], Awaitable[None]]


def run_service(
    main: ServiceMain, *, name: str, log: Logger | None = None, stop_grace_s: float = STOP_GRACE_S
) -> int:
    """Run `main(service)` under trio until it returns or a signal stops it; returns the exit code.

    Args:
        main: returns on its own soon after `service.stopping` is set; cancelled after `stop_grace_s`.
        name: the logger's name when `log` is not given.
        log: where the lines go.
        stop_grace_s: seconds between the first signal and cancellation.
    """
    logger = log or get_logger(name)
    try:
        trio.run(_supervise, main, Service(logger), stop_grace_s)
    except Exception as exc:  # noqa: BLE001 - the top of the program
        cause = sole_cause(exc)
        if isinstance(cause, ConfigError):
            sys.stderr.write(f"{cause}\n")
            return EXIT_CONFIG
        logger.error("crashed", error=type(cause).__name__, detail=str(cause), where=place_of(cause))  # noqa: TRY400
        return EXIT_FAULT
    logger.info("stopped")
    return EXIT_OK


async def _supervise(main: ServiceMain, service: Service, stop_grace_s: float) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(_watch_signals, service, nursery.cancel_scope, stop_grace_s)
        await main(service)
        nursery.cancel_scope.cancel()


async def _watch_signals(
    service: Service,
    everything: trio.CancelScope,
    stop_grace_s: float,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            if number == signal.SIGHUP:
                continue
            name = signal.Signals(number).name
            if service.stopping.is_set():
                service.log.warning("stop_forced", signal=name)
                everything.cancel()
                return
            service.log.info("stopping", signal=name, grace_s=stop_grace_s)
            service.stopping.set()
            everything.deadline = trio.current_time() + stop_grace_s
