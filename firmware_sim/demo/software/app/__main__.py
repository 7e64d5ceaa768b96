"""The delivered sample: an HTTP page on its own loopback that says what this software may use. Standard library only."""

from __future__ import annotations

import html
import os
import resource
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

PORT = 8080


def facts() -> dict[str, object]:
    """Return what the software sees of itself."""
    return {
        "user": os.getuid(),
        "processes visible": sum(entry.name.isdigit() for entry in Path("/proc").iterdir()),
        "peak memory, KiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


class Page(BaseHTTPRequestHandler):
    """`/health` for the gateway, `/` for people."""

    def do_GET(self) -> None:
        """Answer both pages."""
        if self.path == "/health":
            body, kind = b"ok\n", "text/plain"
        else:
            rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{v}</td></tr>" for k, v in facts().items())
            body, kind = (
                f"<!doctype html><title>box-report</title><table>{rows}</table>".encode(),
                "text/html",
            )
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    HTTPServer(("127.0.0.1", PORT), Page).serve_forever()
