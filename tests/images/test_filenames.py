"""File names made from keys: safe on every system, and different for different keys."""

import re

from hypothesis import given
from hypothesis import strategies as st

from nanobanana_async.images.names import safe_name
from tests.support.rows import each_row

HOSTILE = [
    *("..", ".", "../../etc/passwd", "/etc/passwd", "\\\\server\\share", "C:\\Windows", "C:", "a/b", "a\\b", "a:b"),
    *(
        ".hidden",
        "-rf",
        "name.",
        "name..",
        "a*b?",
        "<a>|b",
        '"a"',
        "~root",
        "$(reboot)",
        "`id`",
        "a&b",
        "%2e%2e%2f",
        "a'b",
    ),
    *("CON", "con", "Aux.txt", "nul", "com1", "LPT9.png", "PRN", "x" * 255, "." * 255, "/" * 255, "con.../", "~"),
    *("a b", "a\nb", "a\0b", "ключ", "\ud800"),
]
SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,119}")
DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@each_row("key", ["nb-0f3a-1", "order_7.v2", "a", "spring-2024", "A.b-C_d", "com10", "console"])
def test_safe_key_is_its_own_name(key: str) -> None:
    assert safe_name(key) == key


@each_row("key", HOSTILE)
def test_hostile_key_makes_a_safe_name(key: str) -> None:
    name = safe_name(key)
    assert name != key
    assert SAFE.fullmatch(name)
    assert not name.endswith(".")
    assert not DEVICE.fullmatch(name)


def test_name_of_an_unsafe_key_stays_readable() -> None:
    assert safe_name("orders/7") == "orders_7"
    assert safe_name("Frühling 1") == "Fruhling_1"
    assert safe_name("CON") == "_CON"
    long_keys = [f"{'x' * 200}{number}" for number in range(3)]
    assert len({safe_name(key) for key in long_keys}) == 3


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=255))
def test_every_key_makes_a_safe_name(key: str) -> None:
    name = safe_name(key)
    assert SAFE.fullmatch(name)
    assert not name.endswith(".")
    assert not DEVICE.fullmatch(name)
