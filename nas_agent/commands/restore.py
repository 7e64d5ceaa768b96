"""`restore`, `verify` and `list`: reading a vault with the owner's passphrase."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import attrs
import msgspec
import trio

from nas_agent.adapters.catalogue import Catalogue
from nas_agent.adapters.directory_files import OWNER_FILE, VAULT_FILE, VaultDescription
from nas_agent.adapters.directory_store import DirectoryStore
from nas_agent.adapters.measure import MeasuredSink, Tally
from nas_agent.adapters.open_store import choose_target, existing_catalogue, open_store
from nas_agent.adapters.tree_writer import TreeWriter
from nas_agent.commands.context import Context
from nas_agent.core.targets import DirectoryTarget, Target, parse_target
from nas_agent.core.vault_keys import OwnerKeys
from nas_agent.engine import GenerationView, RestoreResult, list_generations, restore, verify
from nas_agent.engine.vault_reader import Anchor
from nas_agent.events import DoneEvent, ExitCode, GenerationEvent, RestoreEvent, problem_event
from nas_agent.keys.contract import ContractSecret, unwrap_secret
from nas_agent.keys.device import owner_keys
from nas_agent.ports import Problem, TreeSink, VaultStore
from nas_agent.texts import show_bytes, show_duration
from runtime.errors import LocalError
from wire.ids import BackupSetName
from wire.vault.entry import Entry


@attrs.frozen
class ReadRequest:
    """What to read: a set at a target (None: the configured or paired one), with the owner's passphrase."""

    backup_set: BackupSetName
    target: str | None
    passphrase: str
    shows_progress: bool = False


@attrs.frozen
class RestoreRequest:
    """Which generation (`latest`, a sequence number, an ID), or the newest as of a time; and where to."""

    read: ReadRequest
    generation: str
    as_of: dt.datetime | None
    to: str
    paths: tuple[str, ...]
    overwrite: bool


@attrs.frozen
class _Vault:
    """A vault that can be read: how to open a store (one per session), keys, and the newest known generation."""

    target: Target
    backup_set: str
    keys: OwnerKeys
    anchor: Anchor | None
    context: Context
    sign_key: bytes

    def store(self) -> VaultStore:
        if isinstance(self.target, DirectoryTarget):
            return DirectoryStore(
                Path(self.target.path),
                contract=self.keys.contract,
                contract_sign_key=self.sign_key,
                clock=self.context.clock,
            )
        device = self.context.state.load_device()
        return open_store(self.target, self.context.state, device, self.context.store_options())


async def run_list(context: Context, request: ReadRequest) -> ExitCode:
    """List the generations, each verified, oldest first."""
    vault = await trio.to_thread.run_sync(_open_vault, context, request)
    views, verdict = await list_generations(vault.store(), vault.keys, vault.backup_set, anchor=vault.anchor)
    for view in views:
        context.terminal.emit(_generation_event(view))
    message = f"{len(views)} generations of {vault.backup_set} at {vault.target}, each verified"
    if verdict.absent:
        message += f"; no longer listed: {', '.join(map(str, verdict.absent))}"
    context.terminal.emit(DoneEvent(exit_code=0, message=message))
    return 0


async def run_restore(context: Context, request: RestoreRequest) -> ExitCode:
    """Restore into a directory; nothing is written before chain, root and manifest were verified."""
    vault = await trio.to_thread.run_sync(_open_vault, context, request.read)
    generation = request.generation
    if request.as_of is not None:
        generation = await _newest_as_of(vault, request.as_of)
    selection = tuple(os.fsencode(path).strip(b"/") for path in request.paths)
    writer = await trio.to_thread.run_sync(lambda: TreeWriter(request.to, overwrite=request.overwrite))
    tally = Tally(phase="restore")
    sink = _Selecting(MeasuredSink(writer, tally), selection)
    began_s = context.clock.monotonic_s()
    try:
        async with trio.open_nursery() as nursery:
            if request.read.shows_progress:
                nursery.start_soon(context.terminal.follow, "restore", tally)
            result = await restore(
                vault.store(),
                vault.keys,
                vault.backup_set,
                generation,
                sink,
                selection=selection,
                anchor=vault.anchor,
            )
            nursery.cancel_scope.cancel()
    finally:
        writer.close()
    return _report(
        context, "restore", result, sink.not_found(), request.to, context.clock.monotonic_s() - began_s
    )


async def run_verify(context: Context, request: ReadRequest, generation: str) -> ExitCode:
    """Read and check every byte of a generation; writes nothing."""
    vault = await trio.to_thread.run_sync(_open_vault, context, request)
    began_s = context.clock.monotonic_s()
    tally = Tally(phase="verify")

    async with trio.open_nursery() as nursery:
        if request.shows_progress:
            nursery.start_soon(context.terminal.follow, "verify", tally)
        result = await verify(
            vault.store(),
            vault.keys,
            vault.backup_set,
            generation,
            anchor=vault.anchor,
            progress=tally.advance,
        )
        nursery.cancel_scope.cancel()
    return _report(context, "verify", result, (), None, context.clock.monotonic_s() - began_s)


class _Selecting:
    """A `TreeSink` that notices which of the selected paths exist."""

    def __init__(self, inner: TreeSink, selection: Sequence[bytes]) -> None:
        self._inner = inner
        self._missing = {path for path in selection if path}

    def put(self, entry: Entry, pieces: Iterator[bytes | memoryview]) -> tuple[Problem, ...]:
        self._missing.discard(entry.path)
        return self._inner.put(entry, pieces)

    def finish(self) -> tuple[Problem, ...]:
        return self._inner.finish()

    def not_found(self) -> tuple[Problem, ...]:
        return tuple(
            Problem(path, "not-found", "no such path in this generation") for path in sorted(self._missing)
        )


def _open_vault(context: Context, request: ReadRequest) -> _Vault:
    """Open the owner's copy: of this state directory, or of the vault itself on a machine that has none; blocking."""
    configured = context.config.sets.get(request.backup_set.text)
    named = request.target or (configured.target if configured else None) or context.config.target
    target = choose_target(None if named is None else parse_target(named), context.state)
    if context.state.device_path.exists():
        device = context.state.load_device()
        contract = context.state.load_contract(request.passphrase)
        anchor = _anchor(context, target, request.backup_set.text)
        contract_id = device.contract
    elif isinstance(target, DirectoryTarget):
        contract_id, contract = _owner_of_directory(Path(target.path), request.passphrase)
        anchor = None
    else:
        context.state.load_device()  # says what is missing
        raise LocalError("no device")
    keys = owner_keys(contract, contract_id)
    return _Vault(target, request.backup_set.text, keys, anchor, context, contract.public.sign_key)


def _owner_of_directory(root: Path, passphrase: str) -> tuple[str, ContractSecret]:
    """Return contract and secret from the copy that every vault in a directory carries."""
    try:
        description = msgspec.json.decode((root / VAULT_FILE).read_bytes(), type=VaultDescription)
        return description.contract, unwrap_secret((root / OWNER_FILE).read_bytes(), passphrase)
    except OSError as error:
        raise LocalError(f"file://{root}: no vault there ({error.strerror}); check the path") from error
    except msgspec.MsgspecError as error:
        raise LocalError(f"file://{root}: {VAULT_FILE} cannot be read: {error}") from error


def _anchor(context: Context, target: Target, backup_set: str) -> Anchor | None:
    """Return the newest generation this NAS holds a receipt (or its own record) for: less is refused."""
    directory = existing_catalogue(context.state, target, backup_set)
    if directory is None:
        return None
    keys = context.state.load_device()
    catalogue = Catalogue.open(directory, epoch=keys.epoch.epoch)
    try:
        durable = catalogue.durable
    finally:
        catalogue.close()
    return None if durable is None else Anchor(keys.device.public, durable.sequence, durable.root_sha256)


async def _newest_as_of(vault: _Vault, moment: dt.datetime) -> str:
    """Return the ID of the newest generation received at or before `moment`."""
    views, _ = await list_generations(vault.store(), vault.keys, vault.backup_set, anchor=vault.anchor)
    older = [view for view in views if view.info.received_at <= moment.timestamp()]
    if not older:
        raise LocalError(f"no generation is as old as {moment:%Y-%m-%d %H:%M}; see `nas-agent list`")
    return max(older, key=lambda view: (view.info.received_at, view.root.sequence)).info.generation


def _generation_event(view: GenerationView) -> GenerationEvent:
    return GenerationEvent(
        generation=view.info.generation,
        sequence=view.root.sequence,
        received_at=view.info.received_at,
        keep_until=view.info.keep_until,
        files=view.root.files,
        logical_bytes=view.root.logical_bytes,
        stored_bytes=view.info.stored_bytes,
        complete=view.root.complete,
        in_trash=view.info.in_trash,
        device=view.device,
    )


def _report(
    context: Context,
    command: Literal["restore", "verify"],
    result: RestoreResult,
    not_found: tuple[Problem, ...],
    target: str | None,
    elapsed_s: float,
) -> ExitCode:
    for problem in (*result.problems, *not_found):
        context.terminal.emit(problem_event(problem))
    problems = result.problems_total + len(not_found)
    exit_code: ExitCode = 0 if not problems else 3 if result.files else 1
    done = "restored" if command == "restore" else "verified"
    message = (
        f"{done} generation {result.view.root.sequence}: {result.files} files, "
        f"{show_bytes(result.restored_bytes)} in {show_duration(elapsed_s)}"
        + (f" into {target}" if target else "")
        + (f"; {problems} paths are not as they were (listed above)" if problems else "")
    )
    context.terminal.emit(
        RestoreEvent(
            exit_code=exit_code,
            message=message,
            command=command,
            generation=result.view.info.generation,
            sequence=result.view.root.sequence,
            target=target,
            files=result.files,
            restored_bytes=result.restored_bytes,
            problems=problems,
            elapsed_s=round(elapsed_s, 3),
        )
    )
    return exit_code
