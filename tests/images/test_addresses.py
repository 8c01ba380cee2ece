"""Which addresses and hosts are public, in every spelling and IPv6 form."""

import socket
from typing import Any

import pytest

from nanobanana_async.errors import ConfigurationError
from nanobanana_async.http.tls_and_proxies import Proxies
from nanobanana_async.images.addresses import (
    NETWORKS_VARIABLE,
    AddressRefused,
    PublicSockets,
    advice_for,
    is_allowed_address,
    is_allowed_host,
    networks_of_environment,
    to_networks,
)
from tests.support.rows import each_row

PUBLIC = ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]

LOOPBACK = ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "::ffff:7f00:1"]

PRIVATE = {
    "unspecified": ["0.0.0.0", "0.1.2.3", "::", "::ffff:0.0.0.0"],
    "private": ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "::ffff:192.168.1.1", "fd00::1", "fec0::1"],
    "shared": ["100.64.0.1"],
    "link-local": ["169.254.1.1", "fe80::1", "fe80::1%eth0", "2606:4700::1%eth0"],
    "metadata": ["169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"],
    "reserved": ["240.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1", "203.0.113.9", "2001:db8::1", "3fff::1"],
    "multicast": ["224.0.0.1", "ff02::1"],
    "tunnelled": ["64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1", "2002:7f00:1::", "2002:a00:1::"],
    "teredo": ["2001:0:7f00:1::", "2001::1"],
    "relays": ["192.88.99.1"],
    "compatible": ["::127.0.0.1", "::10.0.0.1", "::ffff:0:127.0.0.1"],
    "unassigned": ["5f00::1", "4000::1"],
    "no address": ["localhost", "", "example.com", "127.1", "0x7f000001", "017700000001", "127.0.0.1 ", "1.2.3.4/8"],
}
EVERY_PRIVATE = [address for addresses in PRIVATE.values() for address in addresses]


@each_row("address", PUBLIC)
@each_row("loopback", [False, True])
def test_public_address_is_allowed(address: str, loopback: bool) -> None:
    assert is_allowed_address(address, loopback=loopback)


@each_row("address", EVERY_PRIVATE)
@each_row("loopback", [False, True])
def test_private_address_is_refused_also_with_loopback(address: str, loopback: bool) -> None:
    assert not is_allowed_address(address, loopback=loopback)


@pytest.mark.parametrize("address", LOOPBACK)
def test_loopback_address_is_allowed_only_with_loopback(address: str) -> None:
    assert not is_allowed_address(address, loopback=False)
    assert is_allowed_address(address, loopback=True)


@pytest.mark.parametrize("host", ["images.example", "cdn-1.images.example.", "8.8.8.8", "2606:4700::1111", "a.1b"])
def test_public_host_is_allowed(host: str) -> None:
    assert is_allowed_host(host, loopback=False)


@each_row(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "017700000001",
        "0177.0.0.1",
        "127.0.0.1.",
        "::1",
        "::ffff:127.0.0.1",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "a.localhost",
    ],
)
def test_loopback_host_is_recognised_in_every_spelling(host: str) -> None:
    assert not is_allowed_host(host, loopback=False)
    assert is_allowed_host(host, loopback=True)


@each_row(
    "host",
    [
        "10.0.0.1",
        "10.1",
        "0xa9fea9fe",
        "2852039166",
        "0251.0376.0251.0376",
        "169.254.169.254.",
        "0",
        "0.0.0.0",
        "fe80::1%25eth0",
        "fd00::1",
        "1.2.3.4.5",
        "a.0x7f",
        "256.256.256.256",
        "",
        ".",
        "metadata",
        "metadata.google.internal",
        "printer.local",
        "router.lan",
    ],
)
@each_row("loopback", [False, True])
def test_private_host_is_refused(host: str, loopback: bool) -> None:
    assert not is_allowed_host(host, loopback=loopback)


def test_socket_to_a_private_address_is_not_made() -> None:
    sockets = PublicSockets(loopback=False)
    with pytest.raises(AddressRefused):
        sockets.make_socket((socket.AF_INET6, socket.SOCK_STREAM, 0, "", ("::ffff:10.0.0.1", 80, 0, 0)))
    assert sockets.open_sockets() == []
    with sockets.make_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("8.8.8.8", 80))) as made:
        assert sockets.open_sockets() == [made]


@pytest.mark.parametrize(
    "text", ["proxy.example", "socks5://proxy.example", "http://", "http://[me:secret@", b"http://x"]
)
def test_invalid_proxy_is_refused_without_showing_its_password(text: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Proxies(text)
    assert "secret" not in str(caught.value)


def allowed(address: str, *networks: str) -> bool:
    return is_allowed_address(address, loopback=False, networks=to_networks(networks))


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("198.18.0.0/15", ["198.18.0.21", "198.19.255.1", "::ffff:198.18.0.21"], ["192.0.2.1", "10.0.0.5"]),
        ("10.0.0.5/32", ["10.0.0.5", "64:ff9b::a00:5"], ["10.0.0.6", "10.0.0.4"]),
        ("10.0.0.5", ["10.0.0.5"], ["10.0.0.6"]),
        ("fd12::/16", ["fd12::7"], ["fd13::7", "fd12::7%eth0"]),
        ("127.0.0.2/32", ["127.0.0.2"], ["127.0.0.1"]),
    ],
)
def test_named_network_allows_its_addresses_only(network: str, inside: list[str], outside: list[str]) -> None:
    assert all(allowed(address, network) for address in inside)
    assert not any(allowed(address, network) for address in outside)
    assert allowed("8.8.8.8", network)


@pytest.mark.parametrize(
    ("address", "network"),
    [("168.63.129.16", "168.63.0.0/16"), ("100.100.100.200", "100.64.0.0/10"), ("fd00:ec2::254", "fd00::/8")],
)
def test_metadata_address_must_be_named_by_itself(address: str, network: str) -> None:
    assert not allowed(address, network)
    assert allowed(address, network, address)


def test_link_local_address_can_be_named_by_itself() -> None:
    assert allowed("169.254.10.1", "169.254.10.1/32")
    assert not allowed("169.254.169.254", "169.254.10.1/32")


@pytest.mark.parametrize("address", ["224.0.0.1", "0.0.0.0", "ff02::1"])
def test_multicast_and_unspecified_addresses_are_never_allowed(address: str) -> None:
    assert not allowed(address, address)


@each_row(
    ("value", "why"),
    [
        ("10.0.0.5/32", "a list of networks"),
        (7, "a list of networks"),
        (["10.0.0.5/8"], "host bits"),
        (["minio"], "minio"),
        ([7], "7"),
        (["0.0.0.0/0"], "too large"),
        (["::/0"], "too large"),
        (["169.254.0.0/16"], "link-local"),
        (["169.254.169.0/24"], "link-local"),
        (["fe80::/64"], "link-local"),
    ],
)
def test_invalid_network_is_refused(value: Any, why: str) -> None:
    with pytest.raises(ConfigurationError, match=f"allow_networks must be .*{why}"):
        to_networks(value)


def test_networks_of_the_environment_are_separated_by_commas() -> None:
    assert networks_of_environment({}) == ()
    assert networks_of_environment({NETWORKS_VARIABLE: " 10.0.0.5/32, 198.18.0.0/15,"}) == to_networks(
        ["10.0.0.5/32", "198.18.0.0/15"]
    )
    with pytest.raises(ConfigurationError, match="NANOBANANA_ALLOW_NETWORKS must be"):
        networks_of_environment({NETWORKS_VARIABLE: "10.0.0.5/32 10.0.0.6/32"})


@pytest.mark.parametrize("host", ["minio", "images.internal", "a.lan"])
def test_private_name_is_allowed_where_its_address_is_checked(host: str) -> None:
    networks = to_networks(["10.0.0.5/32"])
    assert is_allowed_host(host, loopback=False, networks=networks, checked=True)
    assert not is_allowed_host(host, loopback=False, networks=networks)
    assert not is_allowed_host(host, loopback=False, checked=True)


@pytest.mark.parametrize("host", ["10.0.0.6", "169.254.169.254", "0xa9fea9fe", "1.2.3.4.5", "localhost"])
def test_private_literal_outside_the_networks_is_refused(host: str) -> None:
    networks = to_networks(["10.0.0.5/32"])
    assert not is_allowed_host(host, loopback=False, networks=networks, checked=True)


def test_advice_names_the_network_and_no_metadata_address() -> None:
    assert "allow_networks=['10.0.0.5/32'] or NANOBANANA_ALLOW_NETWORKS=10.0.0.5/32" in advice_for("10.0.0.5")
    assert "NANOBANANA_ALLOW_NETWORKS=198.18.0.0/15" in advice_for("198.18.0.21")
    assert advice_for("169.254.169.254") == advice_for("100.100.100.200") == advice_for("127.0.0.1") == ""
