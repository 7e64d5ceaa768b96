"""The update half of hgwd: enrol, ask the time, poll, hand documents to the installer, report (design §5).

Rules
- Outbound only. A poll is one conditional request; enrolment, time and reports never block the next poll for long.
- 4xx ends an attempt until something changes, 5xx and a broken line back off with jitter, `Retry-After` is obeyed.
- If TLS fails on validity dates only, one request is allowed: the time. If the carrier's signed time shows that this
  machine's clock is wrong, the session goes on without the date check: everything fetched is signed by itself, and
  statements carry the trusted time.
- Reports are signed and counted; one goes out when something changed and once a day.

It opens no listener. Trust decisions are in core/, installing is in installer.py.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Final

import attrs
import msgspec
import trio

from hgwd.adapters import enrol
from hgwd.adapters.fetch import CarrierFetch, Traffic
from hgwd.adapters.launcher import Launcher
from hgwd.adapters.metadata import MetadataStore
from hgwd.adapters.slots import SlotStore
from hgwd.adapters.state import Enrolment, GatewayState
from hgwd.adapters.update_state import load_memory, save_memory
from hgwd.core.faults import ATTACKS
from hgwd.core.poll import PollPlan
from hgwd.core.trusted_time import start_clock, verify_time
from hgwd.core.update_director import (
    DirectorDocument,
    GatewayIdentity,
    accept_document,
    load_document,
    time_keys,
)
from hgwd.core.update_types import Cause, RefusedError
from hgwd.installer import Installer
from hgwd.software_state import TEXT_CHARS_MAX, Condition, describe, faults_of, software_report
from runtime.clock import Clock
from runtime.errors import CertificateRefusedError, RemoteError, Unavailable
from runtime.files import make_dirs
from runtime.http_client import HttpClient
from runtime.logs import Logger
from wire.ids import RandomId
from wire.joint import GatewayReport

TIME_EVERY_S: Final = 24 * 3600.0
REPORT_EVERY_S: Final = 24 * 3600.0
REPORT_PAUSE_S: Final = 1.0
CLOCK_WRONG_S: Final = 24 * 3600.0
CLOSE_S: Final = 2.0


@attrs.frozen
class UpdateSettings:
    """What the configuration says. `roots`: the pinned anchors as shipped in the firmware."""

    software_dir: Path
    launcher_socket: Path | None
    image_root: bytes
    director_root: bytes
    claim: enrol.EnrolRequest
    poll_s: float = 3600.0
    month_bytes_max: int = 1 << 30
    build_time_s: float = attrs.field(factory=lambda: Path(__file__).stat().st_mtime)


class UpdateService:
    """Start `run` in a nursery; `status`, `conditions` and `poll_now` may be called at any time.

    Args:
        settings: see there.
        state: the open state directory: key and enrolment.
        client: to the carrier; checks its certificate.
        dateless_client: the same without the check of validity dates.
        clock: the machine's clocks.
        log: where the lines go.
    """

    def __init__(
        self,
        settings: UpdateSettings,
        state: GatewayState,
        client: HttpClient,
        dateless_client: HttpClient,
        clock: Clock,
        log: Logger,
    ) -> None:
        self._settings: Final = settings
        self._state: Final = state
        self._client: Final = client
        self._dateless: Final = dateless_client
        self._clock: Final = clock
        self._log: Final = log
        self._memory = load_memory(state.directory)
        self._time = start_clock(settings.build_time_s, self._memory.signed_time_s, clock.monotonic_s())
        self._time_asked_s: float | None = None
        store = MetadataStore(settings.software_dir / "metadata")
        self._store: Final = store
        self._fetch: Final = CarrierFetch(client, store, self._spend)
        self._installer: Final = Installer(
            slots=SlotStore(settings.software_dir),
            launcher=Launcher(settings.launcher_socket),
            fetch=self._fetch,
            clock=clock,
            log=log,
            pinned_image_root=settings.image_root,
            changed=self._changed,
        )
        self._plan = PollPlan(settings.poll_s)
        self._document: DirectorDocument | None = None
        self._document_news = trio.Event()
        self._poll_wanted = trio.Event()
        self._report_wanted = trio.Event()
        self._last_contact_s: float | None = None
        self._next_poll_s: float | None = None
        self._problem: Condition | None = None
        self._attack: tuple[Cause, str] | None = None

    # -- for others ------------------------------------------------------------------------------------------

    def poll_now(self) -> None:
        """Poll as soon as the running attempt, if any, is over."""
        self._poll_wanted.set()

    def now_s(self) -> float:
        """Return the trusted time, unix seconds."""
        return self._time.now_s(self._clock.monotonic_s())

    def status(self) -> dict[str, object]:
        """Return the state for page, CLI and demo; plain JSON values, no secret."""
        enrolment = self._state.enrolment
        document = self._document
        return {
            "gateway": None if enrolment is None else enrolment.gateway,
            "director_version": None if document is None else document.version,
            "document_expires_s": None if document is None else document.expires_s,
            "trusted_time_s": self.now_s(),
            "last_contact_s": self._last_contact_s,
            "next_poll_s": self._next_poll_s,
            "bytes_down": self._memory.bytes_down,
            "month_bytes": self._memory.month_bytes,
            "attack": None if self._attack is None else str(self._attack[0]),
            "software": [describe(state) for state in self._installer.states.values()],
            "conditions": [attrs.asdict(condition) for condition in self.conditions()],
        }

    def conditions(self) -> list[Condition]:
        """Return everything that is not as it should be."""
        found = [] if self._problem is None else [self._problem]
        if self._document is not None and self._document.expires_s <= self.now_s():
            text = "the carrier's document has expired: nothing new is installed, what runs goes on"
            found.append(Condition("director-expired", "warning", text))
        if self._attack is not None:
            found.append(Condition("attack-suspected", "error", f"{self._attack[0]}: {self._attack[1]}"))
        return found + [
            found_fault for state in self._installer.states.values() for found_fault in faults_of(state)
        ]

    # -- running ---------------------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled; then the clients' connections are closed. Ready before the first request."""
        await trio.to_thread.run_sync(make_dirs, self._settings.software_dir)
        await trio.to_thread.run_sync(self._store.open)
        await self._installer.open()
        await self._load_document()
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._install_loop)
                nursery.start_soon(self._installer.supervise)
                nursery.start_soon(self._report_loop)
                await self._poll_loop()
        finally:
            self._installer.launcher.close()
            with trio.move_on_after(CLOSE_S, shield=True):
                await self._client.aclose()
                await self._dateless.aclose()

    async def _poll_loop(self) -> None:
        while True:
            self._poll_wanted = trio.Event()
            retry_after_s = await self._attempt()
            delay_s = self._plan.delay_s(random.random(), retry_after_s)  # noqa: S311 - spreads load, guards nothing
            self._next_poll_s = self.now_s() + delay_s
            with trio.move_on_after(delay_s):
                await self._poll_wanted.wait()

    async def _attempt(self) -> float | None:
        """Poll once; return the carrier's `Retry-After`, if it gave one."""
        try:
            if await self._contact():
                self._problem = None
        except CertificateRefusedError as error:
            self._failed("certificate-refused", str(error))
            if error.dates_only:
                await self._ask_time_without_dates()
        except Unavailable as error:
            self._failed("carrier-unavailable", str(error))
            return error.retry_after_s
        except RemoteError as error:
            self._failed("carrier-protocol", str(error))
        except RefusedError as error:
            self._failed(f"refused-{error.cause}", str(error))
            if error.cause in ATTACKS:
                self._attack = (error.cause, error.message[:TEXT_CHARS_MAX])
                self._changed()
        finally:
            await trio.to_thread.run_sync(save_memory, self._state.directory, self._memory)
        return None

    async def _contact(self) -> bool:
        """Do all that one attempt has to do; False if the carrier does not know this gateway."""
        if self._time_asked_s is None or self.now_s() - self._time_asked_s > TIME_EVERY_S:
            await self._ask_time(self._fetch.client)
        enrolment = self._state.enrolment or await self._enrol()
        if enrolment is None:
            return False
        await self._poll(enrolment, self._identity(enrolment))
        return True

    async def _poll(self, enrolment: Enrolment, identity: GatewayIdentity) -> None:
        usable = self._document is not None and self._document.expires_s > self.now_s()
        etag = self._memory.etag if usable and self._memory.gateway == enrolment.gateway else None
        try:
            fresh = await self._fetch.poll(enrolment.director_path, etag)
        except RefusedError as error:
            if (
                error.cause is Cause.MISSING
            ):  # our path is gone: the contract ended, or another enrolment took over
                self._state.forget_enrolment()
            raise
        if fresh is not None:
            steps = accept_document(self._settings.director_root, fresh.data, identity, self.now_s())
            self._document = await self._fetch.drive(steps)
            self._memory.etag, self._memory.gateway = fresh.etag, enrolment.gateway
            self._attack = self._installer.attack = None
            self._log.info("director_document", version=self._document.version)
        document = self._document
        if document is not None:
            self._plan = self._plan.after_success(document.body.poll_s, document.body.jitter_percent / 100)
        self._last_contact_s = self.now_s()
        self._document_news.set()
        self._report_wanted.set()

    async def _enrol(self) -> Enrolment | None:
        answer = await enrol.enrol(self._fetch.client, self._state.key, self._settings.claim, self.now_s())
        if isinstance(answer, enrol.Declined):
            if answer.code == "clock":
                self._time_asked_s = None
            self._failed("enrolment-refused", f"the carrier does not enrol this gateway here: {answer.code}")
            return None
        made = Enrolment(
            gateway=answer.gateway, director_path=answer.director_path, enrolled_at_s=int(self.now_s())
        )
        await trio.to_thread.run_sync(self._state.save_enrolment, made)
        self._log.info("enrolled", gateway=made.gateway)
        return made

    async def _load_document(self) -> None:
        enrolment = self._state.enrolment
        if enrolment is not None:
            steps = load_document(self._settings.director_root, self._identity(enrolment))
            self._document = await self._fetch.drive(steps)

    def _identity(self, enrolment: Enrolment) -> GatewayIdentity:
        return enrol.identity_of(RandomId.parse(enrolment.gateway), self._settings.claim)

    # -- time ------------------------------------------------------------------------------------------------

    async def _ask_time(self, client: HttpClient) -> None:
        nonce, blob = await enrol.ask_time(client)
        keys = await self._fetch.drive(time_keys(self._settings.director_root))
        signed_s = verify_time([blob], nonce, keys, now_s=self.now_s(), machine_s=self._clock.now_s())
        self._time = self._time.advanced_to(signed_s, self._clock.monotonic_s())
        self._memory.signed_time_s = max(signed_s, self._memory.signed_time_s or 0.0)
        self._time_asked_s = self.now_s()

    async def _ask_time_without_dates(self) -> None:
        """The one request that a failed date check allows; see the module."""
        try:
            await self._ask_time(self._dateless)
        except (Unavailable, RemoteError, RefusedError) as error:
            self._log.warning("time", outcome="not-accepted", detail=str(error))
            return
        if abs(self.now_s() - self._clock.now_s()) > CLOCK_WRONG_S:
            self._log.warning("machine_clock_wrong", by_s=int(self._clock.now_s() - self.now_s()))
            self._fetch.client = self._dateless
            self._poll_wanted.set()

    # -- installing and reporting ----------------------------------------------------------------------------

    async def _install_loop(self) -> None:
        await self._installer.recover()
        while True:
            await self._document_news.wait()
            self._document_news = trio.Event()
            enrolment, document = self._state.enrolment, self._document
            if enrolment is None or document is None:
                continue
            try:
                await self._installer.obey(document, self._identity(enrolment), self.now_s())
            except (Unavailable, RemoteError) as error:
                self._failed("carrier-unavailable", str(error))
                await trio.sleep(self._plan.delay_s(random.random(), _retry_after_s(error)))  # noqa: S311 - as above
                self._poll_wanted.set()
            if self._installer.attack is not None and self._installer.attack != self._attack:
                self._attack = self._installer.attack
                self._changed()

    async def _report_loop(self) -> None:
        while True:
            with trio.move_on_after(REPORT_EVERY_S):
                await self._report_wanted.wait()
            self._report_wanted = trio.Event()
            if self._state.enrolment is not None:
                await self._report()
            await trio.sleep(REPORT_PAUSE_S)

    async def _report(self) -> None:
        software = tuple(software_report(state) for state in self._installer.states.values())
        version = 0 if self._document is None else self._document.version
        attack = None if self._attack is None else f"{self._attack[0]}: {self._attack[1]}"[:TEXT_CHARS_MAX]
        content = msgspec.json.encode((software, version, attack))
        digest = hashlib.sha256(content).hexdigest()
        now_s = self.now_s()
        if digest == self._memory.reported and now_s - self._memory.reported_at_s < REPORT_EVERY_S:
            return
        body = GatewayReport(
            counter=self._memory.next_counter(now_s),
            director_version=version,
            bytes_down=self._memory.bytes_down,
            attack=attack,
            software=software,
        )
        await trio.to_thread.run_sync(save_memory, self._state.directory, self._memory)
        try:
            declined = await enrol.report(self._fetch.client, self._state.key, body, now_s)
        except (Unavailable, RemoteError) as error:
            self._log.warning("report", outcome="not-sent", detail=str(error))
            return
        if declined is not None:
            self._log.warning("report", outcome="declined", code=declined.code)
            return
        self._memory.reported, self._memory.reported_at_s = digest, now_s
        await trio.to_thread.run_sync(save_memory, self._state.directory, self._memory)

    # -- small things ----------------------------------------------------------------------------------------

    def _spend(self, size_bytes: int, kind: Traffic) -> None:
        """Count bytes; over the month's budget no package is fetched, but the carrier is still heard."""
        total = self._memory.count_bytes(size_bytes, self.now_s())
        if kind is Traffic.PACKAGE and total > self._settings.month_bytes_max:
            raise RefusedError(
                Cause.BUDGET, f"{total} bytes this month, budget {self._settings.month_bytes_max}"
            )

    def _failed(self, code: str, text: str) -> None:
        self._plan = self._plan.after_failure()
        if self._problem is None or self._problem.code != code:
            self._log.warning("update_problem", code=code, detail=text)
        self._problem = Condition(code, "warning", text)

    def _changed(self) -> None:
        self._report_wanted.set()


def _retry_after_s(error: Unavailable | RemoteError) -> float | None:
    return error.retry_after_s if isinstance(error, Unavailable) else None
