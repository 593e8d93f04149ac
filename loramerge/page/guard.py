"""Who may ask: requests with the token, for this host, from this page."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["TOKEN", "Guard"]

TOKEN = "x-loramerge-token"
_OPEN = "/static/"  # scripts and styles: nothing of the user's
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

    Args:
        hosts: what the header Host may be, with the port: `127.0.0.1:8321`.
        token: a secret of this run.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str], token: str) -> None:
        self._app = app
        self._hosts = frozenset(hosts)
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _ALWAYS.items():
                    headers.setdefault(name, value)
                if not scope["path"].startswith(_OPEN):
                    headers.setdefault("cache-control", "no-store")
            await send(message)

        await (refusal or self._app)(scope, receive, guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if headers.get("host", "").lower() not in self._hosts:
            return _refused(421, "this server does not answer for that host")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() not in self._hosts:
            return _refused(403, "requests of other pages are refused")
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return _refused(403, "requests of other pages are refused")
        if scope["path"].startswith(_OPEN):
            return None
        given = headers.get(TOKEN) or QueryParams(scope["query_string"]).get("token") or ""
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            return _refused(
                401, "the address lacks its token", "open the address that `loramerge ui` printed"
            )
        return None


def _refused(status: int, text: str, hint: str | None = None) -> Response:
    return JSONResponse({"error": {"text": text, "hint": hint, "exit_code": 2}}, status)
