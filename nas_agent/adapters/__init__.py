"""The NAS agent's hands: file system, stores, terminal. Decisions are in `core/`."""
