"""The gateway daemon: pulls signed software down, carries encrypted backups up (design §3).

Rules: outbound only on the WAN side, listens on the LAN side only; runs without root; never imports an object-store
client, an SSH library, an SQL toolkit or an ASGI server (golden list in `tests/hgwd`).
Inside: cli ▶ daemon ▶ adapters ▶ ports ▶ core.
"""
