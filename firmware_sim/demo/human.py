"""The person at the gateway's admin page: logs in, compares the digits, approves. A browser's requests, no short cut.

Runs on the NAS's side of the LAN (`Host.call`), because the page answers only there.
"""

from __future__ import annotations

import http.client
import re
import urllib.parse

import attrs

_TIMEOUT_S = 10.0
_FIELD = re.compile(r'name="(csrf|pair|digits)" value="([^"]*)"')


class PageError(Exception):
    """The page did not answer as a person needs it."""


@attrs.define
class AdminVisitor:
    """One browser session at `http://host:port`."""

    host: str
    port: int
    _cookie: str = attrs.field(default="", init=False)

    def log_in(self, password: str) -> None:
        """Send the log-in form."""
        status, headers, _ = self._ask("POST", "/login", {"password": password})
        if status != http.client.SEE_OTHER:
            raise PageError(f"admin page: log-in answered {status}")
        self._cookie = headers.get("set-cookie", "").partition(";")[0]

    def read(self) -> str:
        """Return the main page as text."""
        status, _, text = self._ask("GET", "/")
        if status != http.client.OK:
            raise PageError(f"admin page: expected 200, got {status}")
        return text

    def approve(self, digits: str) -> None:
        """Approve the waiting NAS, if and only if the page shows the digits that the NAS shows."""
        fields = dict(_FIELD.findall(self.read()))
        if fields.get("digits") != digits:
            raise PageError(f"admin page shows {fields.get('digits')}, the NAS shows {digits}")
        status, _, _ = self._ask("POST", "/pair/approve", fields)
        if status != http.client.SEE_OTHER:
            raise PageError(f"admin page: approval answered {status}")

    def _ask(
        self, method: str, path: str, form: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=_TIMEOUT_S)
        headers = {"Cookie": self._cookie} if self._cookie else {}
        body = None
        if form is not None:
            body = urllib.parse.urlencode(form)
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            headers["Origin"] = f"http://{self.host}:{self.port}"
        try:
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            text = answer.read().decode()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, text
        finally:
            connection.close()
