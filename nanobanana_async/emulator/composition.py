"""Describe an image before it is painted: its size, and colours derived from the prompt and the task id."""

import colorsys
import hashlib

from attrs import frozen


@frozen
class ImageSpec:
    """An image before it is painted. Equal specs give equal bytes."""

    prompt: str
    seed: int
    index: int
    width: int
    height: int
    is_png: bool
    task_id: str = ""
    """It makes the images of equal prompts differ; the seed of an emulator determines its task ids."""

    def bits(self) -> bytes:
        """Return the digest from which composition and colours are derived."""
        source = f"{self.seed}\n{self.task_id}\n{self.index}\n{self.prompt}".encode(errors="surrogatepass")
        return hashlib.blake2b(source, digest_size=32).digest()


def palette(bits: bytes) -> tuple[list[tuple[int, int, int]], tuple[int, int, int]]:
    """Return five colours, from the sky's zenith to the nearest hill, and the sun's colour."""
    hue = bits[0] / 255
    turn = (0.08 + bits[1] / 255 * 0.2) * (1 if bits[2] % 2 else -1)
    shades = ((0.55, 0.42), (0.45, 0.72), (0.35, 0.95), (0.5, 0.5), (0.6, 0.2))
    colours = [rgb(hue + turn * step, saturation, value) for step, (saturation, value) in enumerate(shades)]
    return colours, rgb(hue + turn * 2.5, 0.25, 1.0)


def rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    """Convert a colour to three bytes."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)
