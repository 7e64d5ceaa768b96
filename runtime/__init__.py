"""What every program stands on: HTTP edge and client, TLS, SQLite, config, logs, metrics, supervision.

Rules: trio only, never asyncio; no business rule lives here; imports nothing above `wire`.
"""
