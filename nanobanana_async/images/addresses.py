"""Allow image downloads from public addresses only, and from networks that the user names.

The address is checked when the socket is made, in the form that the operating system connects to. So the check covers
address literals, IPv6 forms of IPv4 addresses, names that resolve to private addresses, and names that resolve
differently a second time. The URL's host is checked too: behind a proxy it is the only thing known.
"""

import errno
import ipaddress
import socket
from collections.abc import Callable, Iterable, Mapping

import aiohttp

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.escaping import as_plain_str
from nanobanana_async.http.sockets import SocketTracker
from nanobanana_async.validators import shown

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Networks = tuple[Network, ...]

NETWORKS_VARIABLE = "NANOBANANA_ALLOW_NETWORKS"

_UNICAST = ipaddress.ip_network("2000::/3")  # all assigned public IPv6; older Python versions report more as global
_DOCUMENTATION = ipaddress.ip_network("3fff::/20")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_RELAYS = ipaddress.ip_network("192.88.99.0/24")
_AZURE_METADATA = ipaddress.ip_address("168.63.129.16")  # looks public, but is internal to Azure

# Addresses of link-local services and of the metadata services of clouds, which give out credentials.
_SENSITIVE = tuple(
    ipaddress.ip_network(each)
    for each in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::254", "168.63.129.16", "100.100.100.200", "192.0.0.192")
)
_LARGEST = {4: 8, 6: 7}  # the shortest prefix of a network that may be allowed: those of 10.0.0.0/8 and fc00::/7
# VPN tools answer each name with an address from one of these, and connect where the name really is.
_FAKE = (ipaddress.ip_network("198.18.0.0/15"), ipaddress.ip_network("fc00::/18"))

_PRIVATE_NAMES = frozenset({"local", "localdomain", "internal", "intranet", "lan", "home", "corp", "arpa"})


class AddressRefused(OSError):
    """The socket was not made, since its peer address is not public."""

    def __init__(self, address: str) -> None:
        self.address = address
        # The same message for all addresses of a name: aiohttp replaces errors that differ by one of its own.
        super().__init__(errno.EACCES, "the address is not public")


class PublicSockets(SocketTracker):
    """Makes sockets to public addresses and to `networks` only, and to loopback addresses if `loopback`."""

    def __init__(
        self,
        *,
        loopback: bool,
        networks: Networks = (),
        factory: Callable[[aiohttp.AddrInfoType], socket.socket] | None = None,
    ) -> None:
        super().__init__(factory)
        self._loopback = loopback
        self._networks = networks

    def make_socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """Return a new socket, or raise `AddressRefused`."""
        if not is_allowed_address(str(address[4][0]), loopback=self._loopback, networks=self._networks):
            raise AddressRefused(str(address[4][0]))
        return super().make_socket(address)


def to_networks(value: object, name: str = "allow_networks") -> Networks:
    """Return the networks for a setting; raise `ConfigurationError` for one that is invalid or too large."""
    wanted = f"{name} must be a list of networks such as 10.0.0.5/32 or 198.18.0.0/15"
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigurationError(f"{wanted}, not {shown(value)}")
    networks = []
    for each in value:
        try:
            network = ipaddress.ip_network(as_plain_str(each))
        except (ValueError, TypeError) as error:
            why = f": {error}" if isinstance(each, str) else ""
            raise ConfigurationError(f"{wanted}, not {shown(each)}{why}") from None
        if isinstance(each, (int, bytes)) or network.prefixlen < _LARGEST[network.version]:
            raise ConfigurationError(
                f"{wanted}: {shown(each)} is too large, since a link could then lead anywhere in your networks; the"
                f" largest is a /{_LARGEST[network.version]}"
            )
        if network.num_addresses > 1 and any(_contains(sensitive, network) for sensitive in _SENSITIVE):
            raise ConfigurationError(
                f"{wanted}: {network} is link-local, where clouds give out credentials; name single addresses of it"
            )
        networks.append(network)
    return tuple(networks)


def networks_of_environment(environ: Mapping[str, str]) -> Networks:
    """Return the networks that the environment allows; raise `ConfigurationError` for an invalid one."""
    text = environ.get(NETWORKS_VARIABLE, "")
    return to_networks([each.strip() for each in text.split(",") if each.strip()], NETWORKS_VARIABLE)


def is_fake_ip(text: str) -> bool:
    """Return whether an address is of the kind that VPN tools return for every name."""
    return _is_in(ipaddress.ip_address(text), _FAKE)


def advice_for(address: str) -> str:
    """Return how to allow images from an address; no advice for one that may give out credentials."""
    try:
        found: Address = ipaddress.ip_address(address)
    except ValueError:
        return f"; allow_networks= or {NETWORKS_VARIABLE} allows some, such as 10.0.0.5/32"
    found = getattr(found, "ipv4_mapped", None) or found
    if _is_in(found, _SENSITIVE) or found.is_loopback or found.is_multicast or found.is_unspecified:
        return ""
    network = next((fake for fake in _FAKE if found.version == fake.version and found in fake), None)
    wanted = ipaddress.ip_network(found) if network is None else network
    return f"; allow_networks=['{wanted}'] or {NETWORKS_VARIABLE}={wanted} allows it"


def _contains(outer: Network, inner: Network) -> bool:
    return outer.version == inner.version and inner.network_address in outer and inner.prefixlen >= outer.prefixlen


def _is_in(address: Address, networks: Networks) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _is_named(address: Address, networks: Networks) -> bool:
    """Return whether one of the user's networks allows an address; a sensitive one must be named by itself."""
    if address.is_multicast or address.is_unspecified:
        return False
    if _is_in(address, _SENSITIVE):
        networks = tuple(network for network in networks if network.num_addresses == 1)
    return _is_in(address, networks)


def is_allowed_address(text: str, *, loopback: bool, networks: Networks = ()) -> bool:
    """Return whether text is a public address, one in `networks`, or a loopback address and `loopback` is set.

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
    reached = _embedded_ipv4(address) or address
    if _is_named(reached, networks):
        return True
    if address.is_loopback:
        return loopback
    return _is_public(reached)


def is_allowed_host(host: str, *, loopback: bool, networks: Networks = (), checked: bool = False) -> bool:
    """Return whether a URL's host may be allowed: a name that is not known to be private, or an allowed address.

    With `checked` the address of the name is checked as well before connecting: then a name of a private network may
    lead to one in `networks`. Addresses are recognised in every spelling that the operating system accepts.
    """
    bare = host.lower().rstrip(".")
    if ":" in bare:
        return is_allowed_address(bare, loopback=loopback, networks=networks)
    try:
        plain = socket.inet_ntoa(socket.inet_aton(bare))  # of 127.1, 0x7f000001, 017700000001
        return is_allowed_address(plain, loopback=loopback, networks=networks)
    except (OSError, ValueError):  # ValueError: a character that is invalid in a host
        pass
    *names, last = bare.split(".")
    if last == "localhost":
        return loopback
    is_number = last.isdigit() or last.startswith("0x")
    if networks and checked and last and not is_number:
        return True
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
