"""The letters of prompts in emulated images."""

from typing import Any

import pytest
from PIL import ImageFont

from nanobanana_async.emulator.painting import _font_for

TRUETYPE: Any = ImageFont.truetype
MISSING = "\ufffe"


def boxes(text: str) -> list[str]:
    """Return the letters that the font of the text draws as it draws a missing one."""
    font: Any
    font, shown = _font_for(text, 20)
    empty = bytes(font.getmask(MISSING))
    return [letter for letter in shown if bytes(font.getmask(letter)) == empty]


@pytest.mark.parametrize("text", ["Gewächshaus", "Straße, Ärger, Übung", "niño à Łódź", "a fox"])
@pytest.mark.parametrize("has_font", [True, False])
def test_latin_letters_are_no_boxes(text: str, has_font: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_font:
        monkeypatch.setattr(ImageFont, "truetype", missing)
    assert boxes(text) == []


def test_prompt_without_a_font_is_in_plain_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFont, "truetype", missing)
    assert _font_for("Straße für Łukasz 猫", 20)[1] == "Strasse fur Lukasz "


def missing(font: object, *arguments: Any, **options: Any) -> Any:
    if isinstance(font, str):
        raise OSError("cannot open resource")
    return TRUETYPE(font, *arguments, **options)  # Pillow's own font
