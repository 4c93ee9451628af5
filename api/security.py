"""Who may ask: keys with scopes, and what is allowed where no key is configured.

With keys, a write needs one with the scope `write`; searching is open unless `api.search_requires_key`, then any key will
do. Without keys, writes are taken from this machine alone: the peer is a loopback address, no proxy stands between, and
a web page of another origin (or one that re-bound its name to this machine) is not the one asking.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import KeyRequired, NotAllowed
from pipeline.settings import ApiSettings

_bearer = HTTPBearer(auto_error=False, description="a key of the setting api.keys")
_Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
KEY_OPTIONAL: dict[str, Any] = {"security": [{}, {"HTTPBearer": []}]}  # the OpenAPI entry of a call for readers
_FORWARDING_HEADERS = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_LOCAL_NAME = "localhost"
_HEADERS = [
    (b"content-security-policy", b"; ".join(
        [
            b"default-src 'none'",
            b"style-src 'self'",
            b"img-src 'self' data:",
            b"form-action 'self'",
            b"base-uri 'none'",
            b"frame-ancestors 'none'",
        ]
    )),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]  # fmt: skip


class Access:
    """The keys in force, kept as digests."""

    def __init__(self, settings: ApiSettings) -> None:
        self._keys = [(_digest(key.key), frozenset(key.scopes)) for key in settings.keys]
        self._search_requires_key = settings.search_requires_key

    def check_read(self, key: str | None) -> None:
        """Raises KeyRequired where searching needs a key and `key` is none of them."""
        if self._search_requires_key:
            self._scopes(key)

    def check_write(self, key: str | None, request: Request) -> None:
        """Raises KeyRequired, or NotAllowed for a key without the scope and for a caller who is not on this machine."""
        if not self._keys:
            _check_local(request)
        elif "write" not in self._scopes(key):
            raise NotAllowed("this key may not write", "use a key with the scope 'write'")

    def may_write(self, key: str | None, request: Request) -> bool:
        try:
            self.check_write(key, request)
        except (KeyRequired, NotAllowed):
            return False
        return True

    def _scopes(self, key: str | None) -> frozenset[str]:
        if key is None:
            raise KeyRequired("this call needs a key")
        given, found = _digest(key), None
        for digest, scopes in self._keys:  # all of them: the time taken tells nothing
            if hmac.compare_digest(digest, given):
                found = scopes
        if found is None:
            raise KeyRequired("the key is not known")
        return found


def access_of(request: Request) -> Access:
    access: Access = request.app.state.access
    return access


async def key_of(request: Request) -> str | None:
    """The key that `request` carries."""
    credentials = await _bearer(request)
    return credentials.credentials if credentials is not None else None


async def reader(request: Request) -> None:
    """Lets through who may search."""
    access_of(request).check_read(await key_of(request))


async def writer(request: Request, credentials: _Credentials) -> None:
    """Lets through who may write."""
    access_of(request).check_write(credentials.credentials if credentials is not None else None, request)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _check_local(request: Request) -> None:
    why = _not_local(request)
    if why:
        raise NotAllowed(
            f"without a configured key, writes are taken from this machine only ({why})",
            "set api.keys (YEOUL_API__KEYS) and send one as 'Authorization: Bearer KEY'",
        )


def _not_local(request: Request) -> str:
    peer = request.client.host if request.client is not None else ""
    if not _is_loopback(peer):
        return f"the caller is {peer or 'unknown'}"
    if any(name in request.headers for name in _FORWARDING_HEADERS):
        return "a proxy stands between"
    hosts: Sequence[tuple[str, str]] = [("the host asked for", f"//{request.headers.get('host', '')}")]
    if "origin" in request.headers:
        hosts = [*hosts, ("the page asking", request.headers["origin"])]
    for what, address in hosts:
        name = _hostname(address)
        if name != _LOCAL_NAME and not _is_loopback(name):
            return f"{what} is {name or 'unknown'}"
    return ""


def _hostname(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)  # ::ffff:127.0.0.1, how a dual-stack socket names 127.0.0.1
    return (mapped or parsed).is_loopback


class SecurityHeaders:
    """ASGI middleware: every answer says that it is what it says it is, and pages may load nothing from elsewhere."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        await self._app(scope, receive, secured if scope["type"] == "http" else send)
