"""What every command gets: state, configuration, terminal, clock."""

from __future__ import annotations

import attrs

from nas_agent.adapters.open_store import StoreOptions
from nas_agent.adapters.state import StateDirectory
from nas_agent.config import AgentConfig
from nas_agent.events import WaitingEvent
from nas_agent.terminal import Terminal
from runtime.clock import Clock, SystemClock


@attrs.frozen
class Context:
    """One run of the program."""

    state: StateDirectory
    config: AgentConfig
    terminal: Terminal
    clock: Clock = attrs.field(factory=SystemClock)

    def store_options(self) -> StoreOptions:
        """Return how stores are reached in this run; waits are shown."""

        def waiting(code: str, message: str, wait_s: float) -> None:
            self.terminal.emit(WaitingEvent(code=code, message=message, wait_s=round(wait_s, 1)))

        return StoreOptions(self.config.keep_trying_s, waiting, self.clock)
