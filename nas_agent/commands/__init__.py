"""What each command of `nas-agent` does: wiring of keys, ports and engine, and the event its result becomes.

Argument parsing and exit codes of faults are in `nas_agent/cli.py`; decisions are in `core/` and `engine/`.
"""
