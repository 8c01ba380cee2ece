"""Templates of names: checked when they are made; their names are readable and safe."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_async.errors import ConfigurationError, InvalidRequest
from nanobanana_async.images.names import NameFacts, NameTemplate, default_name, row_name, slug
from tests.images.test_filenames import DEVICE, SAFE
from tests.support.rows import each_row

FACTS = NameFacts(row=17, key="SKU 1", prompt="A lighthouse in fog", metadata={"shelf": "Größe/7", "n": 3})


@each_row(
    ("text", "expected"),
    [
        ("A lighthouse, in fog!", "a-lighthouse-in-fog"),
        ("Gewächshaus & Straßencafé", "gewachshaus-strassencafe"),
        ("zwei\nZeilen\t", "zwei-zeilen"),
        ("../../etc/passwd", "etc-passwd"),
        ("灯台", "image"),
        ("", "image"),
        ("word " * 40, "-".join(["word"] * 12)),
        ("x" * 200, "x" * 60),
    ],
)
def test_slug_is_words_of_ascii_letters(text: str, expected: str) -> None:
    assert slug(text) == expected


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{row:04}-{slug}", "0017-a-lighthouse-in-fog"),
        ("{row}", "17"),
        ("{key}_{row:03d}", "SKU_1_017"),
        ("{metadata[shelf]}-{metadata[n]}", "Grosse_7-3"),
        ("Entwürfe {slug}.PNG", "Entwurfe_a-lighthouse-in-fog"),
    ],
)
def test_template_makes_a_name(template: str, name: str) -> None:
    assert NameTemplate("names", template).stem(FACTS) == name


@each_row(
    ("template", "why"),
    [
        ("", "must be a template"),
        (".png", "must be a template"),
        (5, "must be a template"),
        ("{row", "is no template"),
        ("{prompt}", "names has {prompt}: it takes {row}, {slug}, {key}, {metadata[NAME]}"),
        ("{key.__class__}", "it takes"),
        ("{metadata}", "it takes"),
        ("{metadata[a][b]}", "it takes"),
        ("{slug!r}", "it takes"),
        ("{slug:>99999}", "only row takes a format"),
        ("{row:999}", "only row takes a format"),
        ("out/{slug}", "folders can't be made"),
        ("..\\{slug}", "folders can't be made"),
        ("a*{slug}", "only letters, digits"),
        ("hero", "names: 'hero' has no field, so that all images would have the same name: it takes {row}, {slug}"),
        ("{{row}}", "only letters, digits"),
        ("shelf 7.png", "has no field"),
    ],
)
def test_bad_template_is_refused(template: Any, why: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        NameTemplate("names", template)
    assert why in str(caught.value)


@pytest.mark.parametrize("template", ["{key}", "{metadata[missing]}"])
def test_row_without_what_the_template_names_is_refused(template: str) -> None:
    with pytest.raises(InvalidRequest, match="and this row"):
        NameTemplate("names", template).stem(NameFacts(row=1, prompt="a", metadata={"missing": None}))


def test_template_for_one_job_needs_no_field() -> None:
    assert NameTemplate("name", "hero", fields=("key", "slug")).stem(FACTS) == "hero"


@pytest.mark.parametrize(
    ("template", "name"), [("{metadata[Shelf No]}", "7"), ("{metadata[SHELF NO]}", "7"), ("{metadata[n]}", "small")]
)
def test_metadata_is_found_in_any_case(template: str, name: str) -> None:
    facts = NameFacts(row=1, metadata={"Shelf no": 7, "N": "big", "n": "small"})
    assert NameTemplate("names", template).stem(facts) == name


def test_metadata_that_differs_only_by_case_must_be_named_exactly() -> None:
    facts = NameFacts(row=1, metadata={"Shelf": 7, "SHELF": 8})
    with pytest.raises(InvalidRequest, match="has no 'shelf'"):
        NameTemplate("names", "{metadata[shelf]}").stem(facts)


def test_row_is_named_by_template_then_key_then_number() -> None:
    assert row_name(NameTemplate("names", "{row}"), FACTS) == "17"
    assert row_name(None, FACTS) == "SKU_1"
    assert row_name(None, NameFacts(row=3, prompt="A fox")) == "0003-a-fox"


def test_job_is_named_by_a_key_that_a_person_chose() -> None:
    facts = NameFacts(prompt="A fox")
    assert default_name("order-17", facts) == "order-17"
    assert default_name("c8b56cf8fec6-" + "0f" * 16, facts) == "a-fox"
    assert default_name("0f" * 16, facts) == "a-fox"
    assert default_name("task-img_1", NameFacts()) == "task-img_1"


@given(st.text(), st.text(min_size=1))
def test_any_prompt_and_metadata_make_a_safe_name(prompt: str, value: str) -> None:
    facts = NameFacts(row=1, prompt=prompt, metadata={"x": value})
    for template in ("{slug}", "{metadata[x]}", "{metadata[x]}-{row:04}"):
        try:
            name = NameTemplate("names", template).stem(facts)
        except InvalidRequest:
            assert not value.strip()
            continue
        assert SAFE.fullmatch(name)
        assert not name.endswith(".")
        assert not DEVICE.fullmatch(name)
