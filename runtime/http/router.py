"""From method and path to a handler.

Templates: "/a/{name}/b" where {name} is one segment; "/files/{name...}" where the last takes the rest. A fixed
segment wins over a parameter. Unknown path: 404 `not-found`; known path, other method: 405 with Allow. A HEAD
is served by the GET handler; the server leaves the body out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs

from runtime.http.types import Request, Response, error_response

RouteHandler = Callable[..., Awaitable[Response]]


@attrs.frozen
class _Route:
    template: str
    handlers: dict[str, RouteHandler]
    names: tuple[str, ...]


@attrs.define
class _Node:
    fixed: dict[str, _Node] = attrs.field(factory=dict)
    parameter: _Node | None = None
    rest: _Route | None = None
    route: _Route | None = None


class Router:
    """A Handler that dispatches to the handlers registered by `route`."""

    def __init__(self) -> None:
        self._root = _Node()
        self._exact: dict[str, _Route] = {}

    def route(self, method: str, template: str, handler: RouteHandler) -> None:
        """Register `handler(request, **parameters)` for one method and template.

        Raises:
            ValueError: the template does not start with "/", or the pair is registered already.
        """
        if not template.startswith("/"):
            raise ValueError(f"route template: expected a leading slash, got {template!r}")
        route = self._place(template)
        if method in route.handlers:
            raise ValueError(f"route {method} {template}: registered twice")
        route.handlers[method] = handler
        if not route.names:
            self._exact[template] = route

    def _place(self, template: str) -> _Route:
        node, names = self._root, list[str]()
        for segment in template[1:].split("/"):
            if segment.startswith("{") and segment.endswith("...}"):
                names.append(segment[1:-4])
                node.rest = node.rest or _Route(template, {}, tuple(names))
                return node.rest
            if segment.startswith("{") and segment.endswith("}"):
                names.append(segment[1:-1])
                node.parameter = node.parameter or _Node()
                node = node.parameter
            else:
                node = node.fixed.setdefault(segment, _Node())
        node.route = node.route or _Route(template, {}, tuple(names))
        if node.route.names != tuple(names):
            raise ValueError(f"route template {template}: other parameter names than {node.route.template}")
        return node.route

    def find(self, path: str) -> tuple[_Route, tuple[str, ...]] | None:
        """Find the route of a decoded path and its parameter values, in template order."""
        exact = self._exact.get(path)
        if exact is not None:
            return exact, ()
        return _search(self._root, path[1:].split("/"), 0, ())

    async def __call__(self, request: Request) -> Response:
        """Dispatch; see Handler."""
        found = self.find(request.path)
        if found is None:
            return error_response(404, "not-found", "nothing is served under this path")
        route, values = found
        request.trace.route = route.template
        handler = route.handlers.get(request.method)
        if handler is None and request.method == "HEAD":
            handler = route.handlers.get("GET")
        if handler is None:
            allowed = ", ".join(sorted(route.handlers))
            refusal = error_response(405, "method-not-allowed", f"{route.template} takes {allowed}")
            return attrs.evolve(refusal, headers=(*refusal.headers, ("allow", allowed)))
        return await handler(request, **dict(zip(route.names, values, strict=True)))


def _search(
    node: _Node, segments: list[str], depth: int, values: tuple[str, ...]
) -> tuple[_Route, tuple[str, ...]] | None:
    if depth == len(segments):
        return (node.route, values) if node.route else None
    segment = segments[depth]
    child = node.fixed.get(segment)
    found = _search(child, segments, depth + 1, values) if child else None
    if found is None and node.parameter and segment:
        found = _search(node.parameter, segments, depth + 1, (*values, segment))
    if found is None and node.rest and segment:
        found = (node.rest, (*values, "/".join(segments[depth:])))
    return found
