"""Emulate what our programs run on: gateway profiles, a network lab, and a booted machine.

Three levels share one vocabulary (design §9): `lab` runs the real programs in network namespaces, one access line
each; `boot` starts a profile as an arm64 machine under QEMU; both read their sizes from `profiles/*.toml`.
Nothing public says what is inside the real gateways, so every unknown hardware fact is marked as assumed and the
machine is always called a "PR-500-class profile", never "a PR-500".

This package is for developers, CI and field engineers: it never runs on a gateway and no shipped program imports it.
"""
