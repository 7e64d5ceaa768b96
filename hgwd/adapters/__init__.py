"""The gateway's edges: flash, sockets, pages and child processes behind the ports of `hgwd.ports`."""
