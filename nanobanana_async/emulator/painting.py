"""Paint images with Pillow; no other file of the emulator imports it."""

import io
import math
import random
import unicodedata
from contextlib import suppress

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from nanobanana_async.emulator.composition import ImageSpec, palette

_SKETCH_EDGE = 2048  # longest edge of the painted sketch, which is then scaled; only the text is drawn at full size
_HILLS = 4

_ASCII_FOLDING = str.maketrans({"ß": "ss", "æ": "ae", "Æ": "AE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L"})

Colour = tuple[int, int, int]


def paint_with_pillow(spec: ImageSpec) -> bytes:
    """Return the encoded image."""
    long_edge = max(spec.width, spec.height)
    ratio = min(1.0, _SKETCH_EDGE / (2 * long_edge)) * 2
    size = max(1, round(spec.width * ratio)), max(1, round(spec.height * ratio))
    sketch = _compose(size, spec.bits())
    image = sketch.resize((spec.width, spec.height), Image.Resampling.LANCZOS)
    _draw_prompt(image, spec.prompt)
    out = io.BytesIO()
    if spec.is_png:
        image.save(out, "PNG", compress_level=2)
    else:
        image.save(out, "JPEG", quality=88)
    return out.getvalue()


def _compose(size: tuple[int, int], bits: bytes) -> Image.Image:
    rng = random.Random(bits)
    colours, sun = palette(bits)
    image = _sky(size, colours[:3])
    _stars(image, rng, sun)
    image = _sun(image, rng, sun)
    draw = ImageDraw.Draw(image)
    for number in range(_HILLS):
        depth = (number + 1) / _HILLS
        _hill(draw, size, rng, depth, _mix(colours[2], colours[4], depth))
    return image


def _sky(size: tuple[int, int], colours: list[Colour]) -> Image.Image:
    column = Image.new("RGB", (1, len(colours)))
    for row, colour in enumerate(colours):
        column.putpixel((0, row), colour)
    return column.resize(size, Image.Resampling.BICUBIC)


def _stars(image: Image.Image, rng: random.Random, colour: Colour) -> None:
    width, height = image.size
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randrange(30, 90)):
        x, y = rng.random() * width, rng.random() ** 2 * height * 0.5
        radius = max(0.6, min(width, height) * 0.0015 * (0.5 + rng.random()))
        tone = _mix(colour, _pixel(image, x, y), rng.random() * 0.6)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tone)


def _pixel(image: Image.Image, x: float, y: float) -> Colour:
    found = image.getpixel((int(x), int(y)))
    assert isinstance(found, tuple)
    return int(found[0]), int(found[1]), int(found[2])


def _sun(image: Image.Image, rng: random.Random, colour: Colour) -> Image.Image:
    width, height = image.size
    x, y = width * rng.uniform(0.2, 0.8), height * rng.uniform(0.25, 0.5)
    radius = min(width, height) * rng.uniform(0.09, 0.17)
    small = max(1, width // 8), max(1, height // 8)  # a blurred glow needs no resolution, and small is faster
    glow = Image.new("L", small)
    box = [(x - radius * 1.4) / 8, (y - radius * 1.4) / 8]
    box += [(x + radius * 1.4) / 8, (y + radius * 1.4) / 8]
    ImageDraw.Draw(glow).ellipse(tuple(box), fill=150)
    glow = glow.filter(ImageFilter.GaussianBlur(radius / 12)).resize(image.size)
    image.paste(Image.new("RGB", image.size, colour), (0, 0), glow)
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return image


def _hill(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    rng: random.Random,
    depth: float,
    colour: Colour,
) -> None:
    width, height = size
    base = height * (0.5 + 0.4 * depth)
    waves = [(rng.uniform(0.5, 1.5) * (2**octave), rng.random() * math.tau, 0.07 / (2**octave)) for octave in range(5)]
    points = [(0.0, float(height))]
    steps = max(8, width // 6)
    for step in range(steps + 1):
        part = step / steps
        lift = sum(high * math.sin(part * often * math.tau + at) for often, at, high in waves)
        points.append((part * width, base - height * lift))
    points.append((float(width), float(height)))
    draw.polygon(points, fill=colour)


def _draw_prompt(image: Image.Image, prompt: str) -> None:
    width, height = image.size
    if min(width, height) < 48:
        return
    size = max(9, round(min(width, height) * 0.05))
    font, prompt = _font_for(prompt, size)
    draw = ImageDraw.Draw(image)
    lines = _wrap(draw, prompt, font, width * 0.86)
    shown = lines[:4]
    if len(lines) > 4:
        shown[3] += " ..."
    y = height * 0.95 - len(shown) * size * 1.25
    for line in shown:
        place = width * 0.07, y
        draw.text(place, line, font=font, fill="white", stroke_width=size // 14, stroke_fill="black")
        y += size * 1.25


def _font_for(prompt: str, size: int) -> tuple[ImageFont.ImageFont | ImageFont.FreeTypeFont, str]:
    """Return a font that has the letters of the prompt, and the prompt; without one, in letters that any font has.

    Pillow's own font has no letters beyond ASCII, and draws boxes in their place.
    """
    if not prompt.isascii():
        with suppress(OSError):
            return ImageFont.truetype("DejaVuSans.ttf", size), prompt
        folded = unicodedata.normalize("NFKD", prompt.translate(_ASCII_FOLDING))
        prompt = folded.encode("ascii", "ignore").decode()
    return ImageFont.load_default(size), prompt


def _wrap(
    draw: ImageDraw.ImageDraw,
    prompt: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    width: float,
) -> list[str]:
    lines: list[str] = []
    for word in prompt[:400].split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and draw.textlength(longer, font=font) <= width:
            lines[-1] = longer
        else:
            lines.append(word[:60])
    return lines


def _mix(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue
