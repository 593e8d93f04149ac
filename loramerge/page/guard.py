"""The guard of the server: it lets in requests with the token, for this host, from this page."""

from __future__ import annotations

import hmac
import os
import sys
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["TOKEN", "Guard"]

TOKEN = "x-loramerge-token"
_OPEN = "/static/"  # scripts and styles: nothing of the user's
# what a browser fetches by itself, without the header: the token stands in the address
_BY_ADDRESS = ("/picture/", "/report/", "/api/events")
_OWN_SITES = ("none", "same-origin")  # what a browser says of a page's own requests
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_ALWAYS = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """Middleware that refuses other hosts, other origins, and requests without the token.

    It stands around everything else, so that each answer has the headers that protect the page, those
    of errors included.

    Args:
        hosts: what the header Host may be, with the port: `127.0.0.1:8321`.
        token: a secret of this run.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str], token: str) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)
        self._origins = frozenset(f"http://{host}" for host in self._hosts)
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _ALWAYS.items():
                    headers.setdefault(name, value)
                if not scope["path"].startswith(_OPEN):
                    headers.setdefault("cache-control", "no-store")
            await send(message)

        try:
            await (self._refusal(scope) or self._app)(scope, receive, guarded)
        except ClientDisconnect:
            pass
        except Exception:  # a bug, which the application has answered, unless it was too late
            if os.environ.get("LORAMERGE_TRACEBACK"):
                sys.excepthook(*sys.exc_info())

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        found = (check(self, scope, headers) for check in self.checks)
        return next((refusal for refusal in found if refusal is not None), None)

    def _host(self, scope: Scope, headers: Headers) -> Response | None:
        """Refuse names that lead here by an address book of somebody else's (DNS rebinding)."""
        hosts = [host.lower() for host in headers.getlist("host")]
        if len(hosts) == 1 and hosts[0] in self._hosts:
            return None
        return _refused(421, "this server does not answer for that host")

    def _origin(self, scope: Scope, headers: Headers) -> Response | None:
        if all(origin.lower() in self._origins for origin in headers.getlist("origin")):
            return None
        return _refused(403, "requests of other pages are refused")

    def _site(self, scope: Scope, headers: Headers) -> Response | None:
        if scope["path"] == "/" and scope["method"] == "GET":
            return None  # a link to the page, in a terminal that is a page itself
        if all(site in _OWN_SITES for site in headers.getlist("sec-fetch-site")):
            return None
        return _refused(403, "requests of other pages are refused")

    def _secret(self, scope: Scope, headers: Headers) -> Response | None:
        if scope["path"].startswith(_OPEN):
            return None
        if hmac.compare_digest(_given(scope, headers).encode(), self._token.encode()):
            return None
        return _refused(
            401, "the address lacks its token", "open the address that `loramerge ui` printed"
        )

    checks = (_host, _origin, _site, _secret)


def _given(scope: Scope, headers: Headers) -> str:
    """Return the token of a request, from where it belongs; empty if it is not there."""
    path: str = scope["path"]
    by_address = path == "/" or path.startswith(_BY_ADDRESS)
    if by_address and scope["method"] in ("GET", "HEAD"):
        return headers.get(TOKEN) or QueryParams(scope["query_string"]).get("token") or ""
    return headers.get(TOKEN) or ""


def _refused(status: int, text: str, hint: str | None = None) -> Response:
    return JSONResponse({"error": {"text": text, "hint": hint, "exit_code": 2}}, status)
