"""Allow image downloads from public addresses only.

The address is checked when the socket is made, in the form that the operating system connects to. So the check covers
address literals, IPv6 forms of IPv4 addresses, names that resolve to private addresses, and names that resolve
differently a second time. The URL's host is checked too: behind a proxy it is the only thing known.
"""

import errno
import ipaddress
import socket

import aiohttp

from nanobanana_async.http.sockets import SocketTracker

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_UNICAST = ipaddress.ip_network("2000::/3")  # all assigned public IPv6; older Python versions report more as global
_DOCUMENTATION = ipaddress.ip_network("3fff::/20")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_RELAYS = ipaddress.ip_network("192.88.99.0/24")
_AZURE_METADATA = ipaddress.ip_address("168.63.129.16")  # looks public, but is internal to Azure

_PRIVATE_NAMES = frozenset({"local", "localdomain", "internal", "intranet", "lan", "home", "corp", "arpa"})


class AddressRefused(OSError):
    """The socket was not made, since its peer address is not public."""

    def __init__(self) -> None:
        # The same message for all addresses of a name: aiohttp replaces errors that differ by one of its own.
        super().__init__(errno.EACCES, "the address is not public")


class PublicSockets(SocketTracker):
    """Makes sockets to public addresses only, and to loopback addresses if `loopback`."""

    def __init__(self, *, loopback: bool) -> None:
        super().__init__()
        self._loopback = loopback

    def make(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """Return a new socket, or raise `AddressRefused`."""
        if not is_allowed_address(str(address[4][0]), loopback=self._loopback):
            raise AddressRefused
        return super().make(address)


def is_allowed_address(text: str, *, loopback: bool) -> bool:
    """Return whether text is a public address, or a loopback address and `loopback` is set.

    A host name is refused: it would be resolved again when connecting.
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
    """Return whether a URL's host may be public: a name that is not known to be private, or a public address.

    Addresses are recognised in every spelling that the operating system accepts.
    """
    bare = host.lower().rstrip(".")
    if ":" in bare:
        return is_allowed_address(bare, loopback=loopback)
    try:
        plain = socket.inet_ntoa(socket.inet_aton(bare))  # of 127.1, 0x7f000001, 017700000001
        return is_allowed_address(plain, loopback=loopback)
    except (OSError, ValueError):  # ValueError: a character that is invalid in a host
        pass
    *names, last = bare.split(".")
    if last == "localhost":
        return loopback
    is_number = last.isdigit() or last.startswith("0x")
    return bool(names) and bool(last) and not is_number and last not in _PRIVATE_NAMES


def _embedded_ipv4(address: Address) -> Address | None:
    """Return the IPv4 address to which a NAT64 or 6to4 address is translated."""
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
