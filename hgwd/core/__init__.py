"""Sans-IO decisions of the gateway: bytes, events and `now` in; decisions out. No clock, no randomness, no logging."""
