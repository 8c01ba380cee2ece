"""Where a picture may be fetched from: from public addresses, whatever name or spelling leads to them.

The address is looked at where the socket is made, of the very bytes that the operating system connects to. So a
literal, an IPv6 form of an IPv4 address, a name that resolves to this network and one that resolves differently the
second time are all the same to it. The host of a URL is looked at besides: behind a proxy it is all we see.
"""

import errno
import ipaddress
import socket

import aiohttp

from nanobanana_async.http.sockets import SocketTracker

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


class PublicSockets(SocketTracker):
    """Makes sockets to public addresses only, and to this machine if `loopback`."""

    def __init__(self, *, loopback: bool) -> None:
        super().__init__()
        self._loopback = loopback

    def make(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """Return a new socket, or raise `AddressRefused`."""
        if not is_allowed_address(str(address[4][0]), loopback=self._loopback):
            raise AddressRefused
        return super().make(address)


def is_allowed_address(text: str, *, loopback: bool) -> bool:
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
    return _is_public(_embedded_ipv4(address) or address)


def is_allowed_host(host: str, *, loopback: bool) -> bool:
    """Tell whether the host of a URL may be public: a name that could be, or a literal that is, in any spelling."""
    bare = host.lower().rstrip(".")
    if ":" in bare:
        return is_allowed_address(bare, loopback=loopback)
    try:
        plain = socket.inet_ntoa(socket.inet_aton(bare))  # of 127.1, 0x7f000001, 017700000001
        return is_allowed_address(plain, loopback=loopback)
    except (OSError, ValueError):  # a character that no host has is a ValueError
        pass
    *names, last = bare.split(".")
    if last == "localhost":
        return loopback
    looks_numeric = last.isdigit() or last.startswith("0x")
    return bool(names) and bool(last) and not looks_numeric and last not in _PRIVATE_NAMES


def _embedded_ipv4(address: Address) -> Address | None:
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
