"""What a picture is made of, before anything is painted: its size, and colours that follow from the prompt."""

import colorsys
import hashlib

from attrs import frozen


@frozen
class ImageSpec:
    """A picture before it is painted; equal values are equal pictures, byte for byte."""

    prompt: str
    seed: int
    index: int
    width: int
    height: int
    png: bool

    def bits(self) -> bytes:
        """Return what the composition follows from."""
        source = f"{self.seed}\n{self.index}\n{self.prompt}".encode(errors="surrogatepass")
        return hashlib.blake2b(source, digest_size=32).digest()


def palette(bits: bytes) -> tuple[list[tuple[int, int, int]], tuple[int, int, int]]:
    """Return five colours from the zenith to the nearest hill, and one for the sun."""
    hue = bits[0] / 255
    turn = (0.08 + bits[1] / 255 * 0.2) * (1 if bits[2] % 2 else -1)
    shades = ((0.55, 0.42), (0.45, 0.72), (0.35, 0.95), (0.5, 0.5), (0.6, 0.2))
    colours = [rgb(hue + turn * step, saturation, value) for step, (saturation, value) in enumerate(shades)]
    return colours, rgb(hue + turn * 2.5, 0.25, 1.0)


def rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    """Return a colour in the three bytes that pictures want."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)
