"""Which proxy of the environment stands between here and a server: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and
NO_PROXY, in capitals or small letters."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit
from urllib.request import getproxies

from sao.errors import EngineError

SCHEMES = ("http", "https", "socks5", "socks5h")
"""Kinds of proxy that can be used; the last two need the package socksio."""


@dataclass(frozen=True, slots=True)
class EnvironmentProxy:
    """A proxy and the variable that names it."""

    variable: str
    url: str

    def __str__(self) -> str:
        """Without user and password."""
        scheme, _, rest = self.url.partition("://")
        return f"the proxy {scheme}://{rest.rpartition('@')[2]} ({self.variable})"

    def fault(self, why: str) -> EngineError:
        """What to raise where it cannot be used."""
        return EngineError(
            f"{self} cannot be used: {why}. To reach the server without it, add the server's name to the "
            "environment variable NO_PROXY",
            key="proxy",
        )


def proxy_for(url: str) -> EnvironmentProxy | None:
    """The proxy for `url`, None where there is none: where NO_PROXY holds its host, or the host is this
    machine (localhost, 127.0.0.1, ::1), which a proxy elsewhere would not reach.

    Raises EngineError where the proxy is of a kind that cannot be used.
    """
    parts = urlsplit(url)
    host, port = (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)
    found = getproxies()
    kind = next((kind for kind in (parts.scheme, "all") if found.get(kind)), None)
    if kind is None or _is_this_machine(host):
        return None
    if any(_holds(entry, host, port) for entry in re.split(r"[,\s]+", found.get("no", "").lower()) if entry):
        return None
    name = f"{kind}_proxy"
    variable = name if os.environ.get(name) else name.upper()
    address = found[kind] if "://" in found[kind] else f"http://{found[kind]}"
    proxy = EnvironmentProxy(variable, address)
    scheme = address.partition("://")[0].lower()
    if scheme not in SCHEMES:
        hint = f". Write socks5:// instead of {scheme}:// if it is one" if scheme.startswith("socks") else ""
        raise proxy.fault(f"{scheme}:// is none of {', '.join(SCHEMES)}{hint}")
    return proxy


def _is_this_machine(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def _holds(entry: str, host: str, port: int) -> bool:
    """Whether an entry of NO_PROXY holds a host: "*", a name (with its subdomains), an address, a network
    such as 10.0.0.0/8; each may end in a port."""
    if entry == "*":
        return True
    entry = entry.rpartition("://")[2]
    if with_port := re.fullmatch(r"(\[.*\]|[^:]+):(\d+)", entry):
        entry = with_port[1]
        if int(with_port[2]) != port:
            return False
    try:
        return ip_address(host) in ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        name = entry.removeprefix("*").strip(".")
        return bool(name) and (host == name or host.endswith(f".{name}"))
