"""The vault format (docs/internals/vault-format.md): entries, frames, packs, session headers, generation roots, keys.

Rules: pure bytes in, values out; nothing here reads a clock, a file or randomness (salts and keys are passed in).
Readers check length, version and signature before they parse, and raise only errors of `wire.errors`.
"""
