"""Decisions of the backup engine: how to cut, compress, pack, compare and verify. No I/O, no clock, no event loop."""
