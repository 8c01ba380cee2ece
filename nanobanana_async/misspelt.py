"""Say which field is meant by a name that is none: a misspelt one, or a word of another API."""

import difflib
from collections.abc import Collection, Iterable

_OTHER_WORDS = {
    **dict.fromkeys(("size", "width", "height"), "aspect_ratio (such as 16:9) and resolution (1K, 2K or 4K)"),
    **dict.fromkeys(("quality", "image_size"), "resolution (1K, 2K or 4K)"),
    **dict.fromkeys(("n", "count", "number", "num", "num_outputs", "batch_size"), "num_images"),
    **dict.fromkeys(("image", "image_url", "image_urls", "input_image", "init_image", "reference"), "images (a list)"),
    **dict.fromkeys(("format", "output", "response_format", "mime_type"), "output_format (jpeg or png)"),
    **dict.fromkeys(("text", "description", "input"), "prompt"),
    **dict.fromkeys(("ratio", "aspect"), "aspect_ratio (such as 16:9)"),
    "webhook": "callback_url",
    **dict.fromkeys(("seed", "background", "negative_prompt"), "extra (as in extra={'seed': 7})"),
}


def unknown_fields(names: Iterable[object], known: Collection[str]) -> str:
    """Return what is wrong with names that are no fields, and which field each of them means."""
    given = [str(name) for name in names]
    hints = [f"{name} is {meant} here" for name in given if (meant := _meant(name, known)) is not None]
    listed = f"unknown field {', '.join(given)}"
    return f"{listed}: {'; '.join(hints)}" if hints else f"{listed}: the fields are {', '.join(known)}"


def _meant(name: str, known: Collection[str]) -> str | None:
    word = name.strip().casefold().replace("-", "_").replace(" ", "_")
    if word == "key" and "idempotency_key" in known:
        return "idempotency_key"
    if (other := _OTHER_WORDS.get(word)) is not None and other.split()[0] in known:
        return other
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=0.7)), None)
