"""The NAS side of the backup: reads a tree, encrypts it, sends it through the gateway, restores and compares.

It meets the gateway and the service in `wire` bytes only and listens on nothing (design §3, §6).
"""
