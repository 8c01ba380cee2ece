"""Secrets are masked in every output."""

import base64
import copy
import html
import json
import pickle
import time
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_async.gateways import ApiMall, Secret
from tests.support.rows import each_row

KEY = "k-7Q9zX/4bT2&mN8'vK+\"<a"
SECRET = Secret(KEY)
VISIBLE = st.characters(min_codepoint=33, max_codepoint=126)


@each_row(
    "form",
    [
        KEY,
        KEY.lower(),
        KEY.upper(),
        quote(KEY),
        quote(KEY, safe="").lower(),
        quote(quote(KEY, safe=""), safe=""),
        "".join(f"%{ord(letter):02X}" for letter in KEY),
        html.escape(KEY),
        html.escape(KEY, quote=False),
        "".join(f"&#{ord(letter)};" for letter in KEY),
        "".join(f"&#x{ord(letter):04X};" for letter in KEY),
        json.dumps(KEY)[1:-1],
        json.dumps(json.dumps(KEY))[3:-3],
        KEY.replace("/", "\\/"),
        "".join(f"\\u{ord(letter):04x}" for letter in KEY),
    ],
)
def test_every_form_of_the_secret_is_masked(form: str) -> None:
    assert SECRET.hide(f"a {form} b {form}") == "a *** b ***"
    assert SECRET.is_in(form)


@each_row("before", ["", "a", "ab", "abc", "user:", "Bearer "])
@each_row("after", ["", "z", "zz", "zzz"])
@each_row("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_secret_is_masked_inside_base64(before: str, after: str, encode: Any) -> None:
    hidden = SECRET.hide(encode(f"{before}{KEY}{after}".encode()).decode())
    assert "***" in hidden
    assert len(hidden) < 20


@given(st.text(VISIBLE, min_size=8, max_size=80), st.text(max_size=20), st.text(max_size=20))
def test_any_secret_is_masked_in_any_text(key: str, before: str, after: str) -> None:
    hidden = Secret(key).hide(f"{before}{key}{after}")
    assert not Secret(key).is_in(hidden.replace("***", " "))


@given(st.text())
def test_other_text_is_unchanged(text: str) -> None:
    assert SECRET.hide(text) == text


def test_short_secret_is_not_searched_for() -> None:
    assert Secret("test").hide("test the test") == "test the test"


def test_names_and_values_are_masked_at_any_depth() -> None:
    value = {"a": [1, None, {KEY: f"x {KEY}"}], KEY: True}
    assert SECRET.hide_in_json(value) == {"a": [1, None, {"***": "x ***"}], "***": True}


def test_secret_is_masked_and_equals_only_secrets() -> None:
    assert (repr(SECRET), str(SECRET), f"{SECRET:>30}", f"{SECRET!s}") == ("<Secret ***>", "***", "***", "***")
    assert Secret(KEY) == SECRET
    assert hash(SECRET) == hash(Secret(KEY))
    assert Secret(f"{KEY}x") != SECRET
    assert SECRET != KEY
    assert SECRET.reveal() == KEY
    assert copy.copy(SECRET) is copy.deepcopy(SECRET) is SECRET


@pytest.mark.parametrize("take", [pickle.dumps, lambda secret: secret.__getstate__()])
def test_secret_is_not_pickled(take: Any) -> None:
    SECRET.hide("x")
    with pytest.raises(TypeError, match="not pickled"):
        take(SECRET)


def test_secret_is_accepted_as_api_key() -> None:
    assert ApiMall(api_key=SECRET).api_key is SECRET


def test_search_in_20_mb_takes_under_a_second() -> None:
    text = base64.b64encode(bytes(range(256)) * 60_000).decode()
    began = time.process_time()
    assert SECRET.hide(text) == text
    assert time.process_time() - began < 1.0
