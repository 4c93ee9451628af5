"""Connections that go only where they may, and no longer than they may.

Names are resolved here, every result is checked, and the connection goes to the very address that was checked: a name
that points elsewhere a moment later gains nothing. TLS still verifies the name. Knows nothing about HTTP.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import httpcore2

from pipeline.errors import shown

Resolve = Callable[[str, int], Sequence[str]]  # (host, port) → its IP addresses as text

_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # an IPv4 address in its last 32 bits, reached through a gateway
# Lead into other networks or nowhere, and `is_global` of some versions of Python lets them through.
_SPECIAL = tuple(
    ipaddress.ip_network(text)
    for text in ("192.0.0.0/24", "192.88.99.0/24", "64:ff9b:1::/48", "100::/64", "2001::/23", "2002::/16", "5f00::/16")
)


class Refused(Exception):
    """A guard said no; the text is for the SourceUnavailable made of it."""

    def __init__(self, why: str, hint: str) -> None:
        super().__init__(why)
        self.why = why
        self.hint = hint


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet, also as it is seen through IPv4-mapped and NAT64 forms."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif ip in _NAT64:
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        elif ip.is_site_local:
            return False
    if any(ip in network for network in _SPECIAL if network.version == ip.version):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_link_local)


def resolved(host: str, port: int) -> list[str]:
    """The addresses of `host` as the system finds them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Clock:
    """The end of the `get` that is running."""

    def __init__(self) -> None:
        self._end = 0.0

    def start(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def is_over(self) -> bool:
        return time.monotonic() >= self._end

    def cut(self, timeout: float | None) -> float:
        """`timeout`, or what is left where that is less. Raises ReadTimeout where nothing is."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise httpcore2.ReadTimeout
        return left if timeout is None else min(timeout, left)


class GuardedNetwork(httpcore2.NetworkBackend):
    def __init__(
        self, network: httpcore2.NetworkBackend, resolve: Resolve, clock: Clock, *, allow_private: bool
    ) -> None:
        self._network = network
        self._resolve = resolve
        self._clock = clock
        self._allow_private = allow_private

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        failure: httpcore2.ConnectError | httpcore2.ConnectTimeout = httpcore2.ConnectError("the name has no address")
        for address in self._checked(host, port):
            try:
                stream = self._network.connect_tcp(
                    address, port, self._clock.cut(timeout), local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
            else:
                return _TimedStream(stream, self._clock)
        raise failure

    def _checked(self, host: str, port: int) -> Sequence[str]:
        try:
            addresses = self._resolve(host, port)
        except (OSError, UnicodeError) as error:  # UnicodeError: a label that is empty or too long for DNS
            raise Refused(f"the name {shown(host)} is not found: {error}", "check the address") from error
        for address in addresses:
            if not self._allow_private and not is_public(address):
                raise Refused(
                    f"{host} is {address}, which is not on the open internet",
                    "where that is meant, allow it for this source with allow_private",
                )
        return addresses


class _TimedStream(httpcore2.NetworkStream):
    """A connection whose every wait ends with the `get` that it serves: a byte a second keeps nobody."""

    def __init__(self, stream: httpcore2.NetworkStream, clock: Clock) -> None:
        self._stream = stream
        self._clock = clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._clock.cut(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._clock.cut(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, self._clock.cut(timeout))
        return _TimedStream(stream, self._clock)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
