"""Who may ask: keys with scopes, and what is allowed where no key is configured.

With keys, a write needs one with the scope `write`; searching is open unless `api.search_requires_key`, then any key will
do; administration needs the scope `admin`. Without keys, writes and administration are taken from this machine alone:
the peer is a loopback address, no proxy stands between, and a web page of another origin (or one that re-bound its name
to this machine) is not the one asking. Secrets are digested as they come in; only digests are kept and compared.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import audit
from api.errors import KeyRequired, NotAllowed
from pipeline.errors import InvalidInput, shown
from pipeline.settings import ApiKey, ApiSettings, KeyScope

_bearer = HTTPBearer(auto_error=False, description="a key of the setting api.keys")
_Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
KEY_OPTIONAL: dict[str, Any] = {"security": [{}, {"HTTPBearer": []}]}  # the OpenAPI entry of a call for readers
_FORWARDING_HEADERS = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_LOCAL_NAME = "localhost"
_LOCAL_CALLER = "local"  # what the audit calls who writes without a key
_EVERYTHING: frozenset[KeyScope] = frozenset({"read", "write", "admin"})
_NAME_DIGITS = 8  # hex digits of a digest that name a key: enough to tell the keys of a file apart
_SECRET_BYTES = 32  # of a new key: 256 random bits
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


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: `name` is for people, `identity` tells callers apart (the key's digest, or the peer's address)."""

    name: str
    identity: str
    scopes: frozenset[KeyScope]

    def require(self, scope: KeyScope) -> None:
        """Raises NotAllowed."""
        if scope not in self.scopes:
            what = "administer" if scope == "admin" else scope
            raise NotAllowed(f"this key may not {what}", f"use a key with the scope '{scope}'")


class Access:
    """The keys in force, kept as digests."""

    def __init__(self, settings: ApiSettings) -> None:
        self._keys = [(digest := _digest_of(key), _caller(key, digest)) for key in settings.keys]
        self.search_requires_key = settings.search_requires_key

    def check_read(self, key: str | None) -> None:
        """Raises KeyRequired where searching needs a key and `key` is none of them."""
        if self.search_requires_key:
            self._known(key)

    def caller(self, key: str | None, request: Request) -> Caller:
        """Who changes something: the key's caller or, where no key is configured, this machine, which may do all.

        Raises KeyRequired, or NotAllowed for a caller without a key who is not on this machine.
        """
        if self._keys:
            return self._known(key)
        _check_local(request)
        return Caller(_LOCAL_CALLER, _peer(request), _EVERYTHING)

    def may_write(self, key: str | None, request: Request) -> bool:
        try:
            self.caller(key, request).require("write")
        except (KeyRequired, NotAllowed):
            return False
        return True

    def _known(self, key: str | None) -> Caller:
        if key is None:
            raise KeyRequired("this call needs a key")
        given, found = _digest(key), None
        for digest, caller in self._keys:  # all of them: the time taken tells nothing
            if hmac.compare_digest(digest, given):
                found = caller
        if found is None:
            raise KeyRequired("the key is not known")
        return found


def access_of(request: Request) -> Access:
    access: Access = request.app.state.access
    return access


def caller_of(request: Request) -> Caller:
    """Who was let through by `writer` or `administrator`."""
    caller: Caller = request.state.caller
    return caller


async def key_of(request: Request) -> str | None:
    """The key that `request` carries."""
    credentials = await _bearer(request)
    return credentials.credentials if credentials is not None else None


async def reader(request: Request) -> None:
    """Lets through who may search."""
    await check_reader(request)


async def check_reader(request: Request) -> None:
    """Raises KeyRequired for who may not search."""
    access = access_of(request)
    if access.search_requires_key:
        access.check_read(await key_of(request))


async def writer(request: Request, credentials: _Credentials) -> None:
    """Lets through who may write, and begins the audit's record of the call."""
    _admit(request, credentials, "write")


async def administrator(request: Request, credentials: _Credentials) -> None:
    """Lets through who may administer, and begins the audit's record of the call."""
    _admit(request, credentials, "admin")


def new_key(name: str | None = None, scopes: Sequence[KeyScope] = ("write",)) -> tuple[str, dict[str, Any]]:
    """A new secret, to be shown once and given to the caller, and its entry of `api.keys`, which does not hold it.

    Raises InvalidInput for a name or a scope that no key can have.
    """
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    given = {"sha256": _digest(secret).hex(), "scopes": list(scopes), "name": name}
    try:
        ApiKey.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        raise InvalidInput(
            f"{field} of a key cannot be {shown(given[field])}: {first['msg']}",
            "scopes are read, write and admin; a name has 1-100 characters",
        ) from error
    return secret, {part: value for part, value in given.items() if value is not None}


def _admit(request: Request, credentials: HTTPAuthorizationCredentials | None, scope: KeyScope) -> None:
    record = audit.begin(request)
    caller = access_of(request).caller(credentials.credentials if credentials is not None else None, request)
    record.key = caller.name  # before the scope is asked for: a key that may not is named too
    request.state.caller = caller
    caller.require(scope)


def _caller(key: ApiKey, digest: bytes) -> Caller:
    identity = digest.hex()
    return Caller(key.name or identity[:_NAME_DIGITS], identity, frozenset(key.scopes))


def _digest_of(key: ApiKey) -> bytes:
    return bytes.fromhex(key.sha256) if key.sha256 is not None else _digest(key.key or "")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _check_local(request: Request) -> None:
    why = _not_local(request)
    if why:
        raise NotAllowed(
            f"without a configured key, writes and administration are taken from this machine only ({why})",
            "set api.keys (YEOUL_API__KEYS) and send one as 'Authorization: Bearer KEY'",
        )


def _not_local(request: Request) -> str:
    peer = _peer(request)
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


def _peer(request: Request) -> str:
    return request.client.host if request.client is not None else ""


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
