"""Where a picture may be fetched from: from public addresses, whatever name or spelling leads to them.

The address is looked at where the socket is made, of the very bytes that the operating system connects to. So a
literal, an IPv6 form of an IPv4 address, a name that resolves to this network and one that resolves differently the
second time are all the same to it. The host of a URL is looked at besides: behind a proxy it is all we see.
"""

import errno
import ipaddress
import socket

import aiohttp
from yarl import URL

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.gateways.secret import Secret
from nanobanana_async.http.sockets import Sockets

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_UNICAST = ipaddress.ip_network("2000::/3")  # all that is assigned of IPv6; older Pythons call more of it global
_DOCUMENTATION = ipaddress.ip_network("3fff::/20")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_RELAYS = ipaddress.ip_network("192.88.99.0/24")
_AZURE_METADATA = ipaddress.ip_address("168.63.129.16")  # public by number only

_PRIVATE_NAMES = frozenset({"local", "localdomain", "internal", "intranet", "lan", "home", "corp", "arpa"})


class AddressRefused(OSError):
    """The socket was not made: its peer would not be public."""

    def __init__(self) -> None:
        # The same words for all addresses of a name: a connector would replace differing ones by an error of its own.
        super().__init__(errno.EACCES, "the address is not public")


class PublicSockets(Sockets):
    """Makes sockets to public addresses only, and to this machine if `loopback`."""

    def __init__(self, *, loopback: bool) -> None:
        super().__init__()
        self._loopback = loopback

    def make(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """Return a new socket, or raise `AddressRefused`."""
        if not may_connect(str(address[4][0]), loopback=self._loopback):
            raise AddressRefused
        return super().make(address)


def may_connect(text: str, *, loopback: bool) -> bool:
    """Tell whether an address is public, or this machine's own if `loopback`. What is no plain address is neither.

    A name in its place would be looked up once more by whoever connects.
    """
    try:
        address: Address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return False
        address = address.ipv4_mapped or address
    if address.is_loopback:
        return loopback
    return _is_public(_tunnelled(address) or address)


def may_ask(host: str, *, loopback: bool) -> bool:
    """Tell whether the host of a URL may be public: a name that could be, or a literal that is, in any spelling."""
    bare = host.lower().rstrip(".")
    if ":" in bare:
        return may_connect(bare, loopback=loopback)
    try:
        plain = socket.inet_ntoa(socket.inet_aton(bare))  # of 127.1, 0x7f000001, 017700000001
        return may_connect(plain, loopback=loopback)
    except OSError:
        pass
    *names, last = bare.split(".")
    if last == "localhost":
        return loopback
    looks_numeric = last.isdigit() or last.startswith("0x")
    return bool(names) and bool(last) and not looks_numeric and last not in _PRIVATE_NAMES


def checked_proxy(proxy: object) -> Secret | ConfigurationError | None:
    """Return a proxy's URL as a secret, since it may hold a password, or what is wrong with it.

    The error is returned and not raised: this frame holds the URL, and tools show the locals of a traceback's frames.
    """
    if proxy is None or isinstance(proxy, Secret):
        return proxy
    try:
        url = URL(proxy) if isinstance(proxy, str) else URL()
        if url.scheme in ("http", "https") and url.host:
            return Secret(str(proxy))
    except ValueError:
        pass
    return ConfigurationError("proxy must be a URL such as http://proxy.example:3128")


def hidden_proxy(proxy: str | Secret | None) -> Secret | None:
    """Return a proxy's URL as a secret; raises `ConfigurationError` without showing it."""
    checked = checked_proxy(proxy)
    del proxy
    if isinstance(checked, ConfigurationError):
        raise checked
    return checked


def proxy_url(proxy: Secret | None) -> URL | None:
    """Return what aiohttp takes for a proxy; into no variable, which a traceback could show."""
    return None if proxy is None else URL(proxy.reveal())


def _tunnelled(address: Address) -> Address | None:
    """Return the IPv4 address that a translator or relay would carry the packets to."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour


def _is_public(address: Address) -> bool:
    if not address.is_global or address.is_multicast or address == _AZURE_METADATA:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return address not in _RELAYS
    return address in _UNICAST and address not in _DOCUMENTATION
