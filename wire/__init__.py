"""Pure formats shared by every program: identifiers, units, signed blobs, package, director and vault formats.

Rules: no I/O, no event loop, no clock, no randomness beyond key generation, no logging. Everything here turns
bytes into typed values or back, or raises an error of `wire.errors`.
"""
