"""Router: which handler gets a path, and what a path or method without one is answered."""

from __future__ import annotations

import pytest

from runtime.http import Peer, Request, Response, Router
from runtime.http.types import error_response


def named(name):
    async def handler(request, **parameters):
        return Response(200, (("x-handler", name),), repr(sorted(parameters.items())).encode())

    return handler


@pytest.fixture
def router():
    router = Router()
    for template in (
        "/",
        "/a",
        "/a/",
        "/a/{x}",
        "/a/b",
        "/a/{x}/c",
        "/a/b/d",
        "/files/{rest...}",
        "/files/fixed",
        "/{x}/{y}/{z}/deep",
    ):
        router.route("GET", template, named(template))
    router.route("PUT", "/a/{x}", named("put"))
    return router


def ask(method, path):
    return Request(method, path, {}, {"host": "a"}, Peer("::1", 1), None, body=None)


@pytest.mark.parametrize(
    ("path", "template", "parameters"),
    [
        ("/", "/", {}),
        ("/a", "/a", {}),
        ("/a/", "/a/", {}),
        ("/a/b", "/a/b", {}),
        ("/a/z", "/a/{x}", {"x": "z"}),
        ("/a/b/c", "/a/{x}/c", {"x": "b"}),
        ("/a/b/d", "/a/b/d", {}),
        ("/files/x/y/z", "/files/{rest...}", {"rest": "x/y/z"}),
        ("/files/x/", "/files/{rest...}", {"rest": "x/"}),
        ("/files/fixed", "/files/fixed", {}),
        ("/files/fixed/more", "/files/{rest...}", {"rest": "fixed/more"}),
        ("/p/q/r/deep", "/{x}/{y}/{z}/deep", {"x": "p", "y": "q", "z": "r"}),
    ],
)
async def test_path_reaches_its_handler(router, path, template, parameters):
    request = ask("GET", path)
    answer = await router(request)
    assert dict(answer.headers)["x-handler"] == template
    assert answer.body == repr(sorted(parameters.items())).encode()
    assert request.trace.route == template


@pytest.mark.parametrize("path", ["/b", "/a/b/e", "/files", "/files/", "/a/b/c/d", "/p/q/r/shallow"])
async def test_unknown_path_is_404_and_has_no_route_in_the_log(router, path):
    request = ask("GET", path)
    assert (await router(request)).status == 404
    assert request.trace.route == ""


async def test_other_method_is_405_with_the_allowed_ones(router):
    answer = await router(ask("DELETE", "/a/x"))
    assert answer.status == 405
    assert dict(answer.headers)["allow"] == "GET, PUT"


async def test_head_is_served_by_get(router):
    assert (await router(ask("HEAD", "/a"))).status == 200


def test_ambiguous_registrations_are_refused(router):
    for template in ("/a/{x}", "/a/{other}", "a"):
        with pytest.raises(ValueError, match="route"):
            router.route("PUT", template, named("again"))


def test_error_codes_are_kebab_case():
    with pytest.raises(ValueError, match="kebab-case"):
        error_response(400, "Bad Request", "x")
    assert error_response(503, "line-down", "x", retry_after_s=0.2).headers[-1] == ("retry-after", "1")
