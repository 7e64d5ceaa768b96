"""`nas-agent backup`: one new generation of a set of sources."""

from __future__ import annotations

import attrs
import trio

from nas_agent.adapters.catalogue import Catalogue
from nas_agent.adapters.excludes import Excludes
from nas_agent.adapters.measure import MeasuredSource, MeasuredStore, Tally, measure_sources
from nas_agent.adapters.open_store import (
    catalogue_directory,
    choose_target,
    open_store,
    prepare_directory,
    with_receipt_trust,
)
from nas_agent.adapters.tree_reader import Root, TreeReader, source_roots
from nas_agent.commands.context import Context
from nas_agent.core.advice import explain_refusal
from nas_agent.core.targets import DirectoryTarget, Target, parse_target
from nas_agent.engine import BackupOptions, BackupResult, backup
from nas_agent.events import BackupEvent, ExitCode, problem_event
from nas_agent.texts import show_bytes, show_duration
from runtime.errors import LocalError
from wire.ids import BackupSetName


@attrs.frozen
class BackupRequest:
    """What was asked on the command line; empty `sources` means the configured set."""

    sources: tuple[str, ...]
    backup_set: BackupSetName
    target: str | None
    excludes: tuple[str, ...]
    one_file_system: bool
    detach: bool
    shows_progress: bool


@attrs.frozen
class _Plan:
    roots: tuple[Root, ...]
    target: Target
    excludes: Excludes
    one_file_system: bool


async def run_backup(context: Context, request: BackupRequest) -> ExitCode:
    """Back up; returns the exit code after its event. Raises what `nas_agent.cli` turns into a failure."""
    keys = context.state.load_device()
    plan = _plan(context, request)
    with context.state.lock():
        prepare_directory(plan.target, context.state, keys)
        keys = with_receipt_trust(keys, plan.target, context.state)
        tally = Tally()
        store = MeasuredStore(open_store(plan.target, context.state, keys, context.store_options()), tally)
        reader = TreeReader(
            plan.roots,
            excludes=plan.excludes,
            one_file_system=plan.one_file_system,
            own_directories=_own_directories(context, plan.target),
        )
        directory = catalogue_directory(context.state, plan.target, request.backup_set.text)
        catalogue = await trio.to_thread.run_sync(lambda: Catalogue.open(directory, epoch=keys.epoch.epoch))
        began_s = context.clock.monotonic_s()
        options = BackupOptions(
            request.backup_set.text, detach=request.detach, give_up_s=float(context.config.keep_trying_s)
        )
        try:
            async with trio.open_nursery() as nursery:
                if request.shows_progress:
                    nursery.start_soon(context.terminal.follow, "backup", tally)
                    nursery.start_soon(_measure, context, plan, tally)
                source = MeasuredSource(reader, tally)
                result = await backup(source, store, catalogue, keys, options)
                nursery.cancel_scope.cancel()
        finally:
            reader.close()
            catalogue.close()
    return _report(context, request, plan, result, context.clock.monotonic_s() - began_s)


def _own_directories(context: Context, target: Target) -> tuple[str, ...]:
    vault = (target.path,) if isinstance(target, DirectoryTarget) else ()
    return (str(context.state.path), *vault)


async def _measure(context: Context, plan: _Plan, tally: Tally) -> None:
    """Learn the totals beside the run, for the estimate only."""
    found = await trio.to_thread.run_sync(
        lambda: measure_sources(
            plan.roots,
            plan.excludes,
            one_file_system=plan.one_file_system,
            own_directories=_own_directories(context, plan.target),
            on_directory=trio.from_thread.check_cancelled,
        )
    )
    tally.files_total, tally.bytes_total = found


def _plan(context: Context, request: BackupRequest) -> _Plan:
    configured = context.config.sets.get(request.backup_set.text)
    sources = request.sources or (configured.sources if configured else ())
    if not sources:
        raise LocalError(
            f"set {request.backup_set.text!r}: nothing to back up; name a directory, or configure [sets.…]"
        )
    named = request.target or (configured.target if configured else None) or context.config.target
    excludes = (*(configured.excludes if configured else ()), *request.excludes)
    try:
        compiled = Excludes(excludes)
    except ValueError as error:
        raise LocalError(str(error)) from error
    return _Plan(
        roots=source_roots(sources),
        target=choose_target(None if named is None else parse_target(named), context.state),
        excludes=compiled,
        one_file_system=request.one_file_system or bool(configured and configured.one_file_system),
    )


def _report(
    context: Context, request: BackupRequest, plan: _Plan, result: BackupResult, elapsed_s: float
) -> ExitCode:
    for problem in result.problems:
        context.terminal.emit(problem_event(problem))
    exit_code = _exit_code(result)
    context.terminal.emit(
        BackupEvent(
            exit_code=exit_code,
            state=result.state,
            message=_message(plan.target, result, elapsed_s),
            target=str(plan.target),
            backup_set=request.backup_set.text,
            generation=result.generation,
            sequence=result.sequence,
            root_sha256=result.root_sha256,
            complete=result.complete,
            files=result.counts.files,
            files_unchanged=result.counts.unchanged_files,
            logical_bytes=result.counts.logical_bytes,
            read_bytes=result.counts.read_bytes,
            sent_bytes=result.sent_bytes,
            packs=result.packs,
            problems=result.counts.problems_total,
            elapsed_s=round(elapsed_s, 3),
        )
    )
    return exit_code


def _exit_code(result: BackupResult) -> ExitCode:
    if result.state == "refused":
        return 4
    return 0 if result.complete else 3


def _message(target: Target, result: BackupResult, elapsed_s: float) -> str:
    counts = result.counts
    facts = (
        f"{counts.files} files, {show_bytes(counts.logical_bytes)}, {counts.unchanged_files} unchanged, "
        f"sent {show_bytes(result.sent_bytes)} in {show_duration(elapsed_s)}"
    )
    problems = f"; {counts.problems_total} paths could not be backed up as they are (listed above)"
    rest = "" if result.complete else problems
    match result.state:
        case "durable" if isinstance(target, DirectoryTarget):
            return f"backed up: generation {result.sequence} is durable in {target.path} ({facts}){rest}"
        case "durable":
            return f"backed up: generation {result.sequence} is durable, receipt verified ({facts}){rest}"
        case "spooled":
            return (
                f"spooled: everything is on the gateway, not backed up yet ({facts}){rest}; "
                "the next `nas-agent backup` of this set completes it"
            )
        case "refused":
            why = explain_refusal(result.refusal) if result.refusal else "refused"
            return f"not backed up: {why}"
