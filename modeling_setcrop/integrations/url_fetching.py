"""Fetching images by address for callers who are not trusted: allowed hosts alone, and never a private address."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from ..image_reading import one_line

_CHUNK = 1 << 16
# Prefixes whose addresses lead to an IPv4 address that the address itself hides.
_TRANSLATED = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")))


class FetchError(ValueError):
    """An address that is not fetched, or gave no image; the message is one line."""


def fetch_image(url: str, allowed_hosts: Collection[str], max_bytes: int, timeout: float) -> bytes:
    """Return what lies at an address.

    The host must be allowed by name, and every address that its name has must be a public one; the connection goes to
    an address that was checked, so a name that changes meanwhile leads nowhere else. Redirections are not followed.

    Args:
        url: http or https, with the usual port.
        allowed_hosts: Names of hosts, compared without regard to case.
        max_bytes: Most that is read.
        timeout: Seconds for all of it.

    Raises:
        FetchError: It is not allowed, or not had in time.
    """
    end = time.monotonic() + timeout
    scheme, host, path = _checked(url, allowed_hosts)
    port = 443 if scheme == "https" else 80
    address = public_address(host, port)
    try:
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
        connection.sock = socket.create_connection((address, port), timeout)
        if scheme == "https":
            connection.sock = ssl.create_default_context().wrap_socket(connection.sock, server_hostname=host)
        try:
            connection.request("GET", path, headers={"User-Agent": "setcrop", "Accept": "image/*"})
            return _body(connection.getresponse(), max_bytes, end)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as error:
        raise FetchError(f"{host}: cannot be fetched ({one_line(error)})") from None


def _checked(url: str, allowed_hosts: Collection[str]) -> tuple[str, str, str]:
    """Scheme, host and path with the query."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise FetchError(f"not an address ({error})") from None
    host = (parts.hostname or "").rstrip(".")
    if parts.scheme not in ("http", "https") or not host or parts.username is not None:
        raise FetchError("only http and https addresses without user names are fetched")
    if host not in {name.lower().rstrip(".") for name in allowed_hosts}:
        raise FetchError(f"{host}: this host is not allowed (start the server with --allow-host)")
    if port not in (None, 443 if parts.scheme == "https" else 80):
        raise FetchError(f"{host}: port {port} is not the usual one")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not path.isascii() or any(character <= " " for character in path):
        raise FetchError(f"{host}: characters in the address must be percent-encoded")
    return parts.scheme, host, path


def public_address(host: str, port: int) -> str:
    """Return an address of a host all of whose addresses are public.

    Raises:
        FetchError: The name has no address, or one that is private, local or otherwise not of the public network.
    """
    try:
        found = [entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise FetchError(f"{host}: no such host ({error})") from None
    if not found or not all(is_public(str(address)) for address in found):
        raise FetchError(f"{host}: its address is not on the public network")
    return str(found[0])


def is_public(address: str) -> bool:
    """Whether an IP address belongs to a host on the public network, and to no other network that it hides."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    parsed = parsed if mapped is None else mapped
    if parsed.version == 6 and any(parsed in network for network in _TRANSLATED):
        return False
    return parsed.is_global and not parsed.is_multicast and not parsed.is_reserved


def _body(answer: http.client.HTTPResponse, max_bytes: int, end: float) -> bytes:
    if answer.status != 200:
        raise FetchError(f"the address answered with HTTP {answer.status}")
    parts, size = [], 0
    while chunk := answer.read1(_CHUNK):
        size += len(chunk)
        if size > max_bytes:
            raise FetchError(f"the address holds more than {max_bytes} bytes")
        if time.monotonic() > end:
            raise FetchError("the address took too long")
        parts.append(chunk)
    return b"".join(parts)
