"""The returned images: number, size, links and inline images."""

import base64
import io

import aiohttp
import pytest
from PIL import Image

from nanobanana_async import GeneratedImage, ImageRequest, InvalidRequest, MemoryLedger
from nanobanana_async.models import OutputFormat
from tests.support.loopback import charged, emulated, quick


async def fetched(image: GeneratedImage) -> tuple[str, Image.Image]:
    """Fetch an image as a browser does; return its media type and the opened image."""
    async with aiohttp.ClientSession() as http, http.get(image.url) as response:
        assert response.status == 200
        opened = Image.open(io.BytesIO(await response.read()))
        opened.load()
        return response.content_type, opened


@pytest.mark.parametrize(("count", "form"), [(1, "png"), (2, "jpeg"), (6, "jpg")])
async def test_num_images_gives_that_many_links(count: int, form: OutputFormat) -> None:
    async with emulated() as emulator:
        async with quick(emulator) as session:
            result = await session.generate("a fox", num_images=count, output_format=form)
        assert [image.index for image in result.images] == list(range(count))
        assert len({image.url for image in result.images}) == count
        assert result.url == result.images[0].url
        for image in result.images:
            media_type, opened = await fetched(image)
            expected = "PNG" if form == "png" else "JPEG"
            assert (opened.format, media_type) == (expected, f"image/{expected.lower()}")
        assert charged(emulator.stats(), 1)
        assert emulator.stats().credential_leaks == 0


@pytest.mark.parametrize(("ratio", "expected"), [("1:1", 1.0), ("16:9", 16 / 9), ("9:16", 9 / 16), ("21:9", 21 / 9)])
async def test_image_has_the_requested_aspect_ratio(ratio: str, expected: float) -> None:
    async with emulated(image_scale=0.2) as emulator:
        async with quick(emulator) as session:
            result = await session.generate("a fox", aspect_ratio=ratio)
        _, image = await fetched(result.images[0])
    assert image.width / image.height == pytest.approx(expected, rel=0.03)


async def test_higher_resolution_is_a_larger_image() -> None:
    async with emulated() as emulator:
        async with quick(emulator) as session:
            small, large = [await session.generate("a fox", resolution=resolution) for resolution in ("1K", "2K")]
        sizes = [(await fetched(result.images[0]))[1].width for result in (small, large)]
    assert sizes[1] == pytest.approx(2 * sizes[0], abs=1)


async def test_reference_images_work_on_both_gateways() -> None:
    request = ImageRequest("put it into a basket", images=["https://pictures.example/soap.png"])
    async with emulated() as emulator:
        async with quick(emulator) as session:
            assert (await session.generate(request)).images
        async with quick(emulator, "defapi") as session:
            assert (await session.generate(request)).images
        assert charged(emulator.stats(), 2)


async def test_defapi_link_leads_to_an_image() -> None:
    async with emulated() as emulator:
        async with quick(emulator, "defapi") as session:
            result = await session.generate("a fox")
        media_type, image = await fetched(result.images[0])
    assert (image.format, media_type) == ("PNG", "image/png")


async def test_inline_image_is_not_in_raw_or_repr() -> None:
    async with emulated(data_uris=True, image_scale=0.05) as emulator:
        async with quick(emulator, "defapi", ledger=MemoryLedger()) as session:
            job = await session.submit("a fox")
            result = await job
            again = await job
        head, _, payload = result.url.partition(",")
        image = Image.open(io.BytesIO(base64.b64decode(payload, validate=True)))
        image.load()
        assert (head, image.format, image.width) == ("data:image/png;base64", "PNG", 51)
        assert again.url == result.url
        assert payload[:40] not in str(result.raw)
        assert payload not in repr(result)
        assert emulator.stats().requests.get("cdn", 0) == 0


async def test_large_inline_image_is_complete() -> None:
    async with emulated(data_uris=True, image_scale=1.0) as emulator, quick(emulator, "defapi") as session:
        result = await session.generate("a fox")
        image = Image.open(io.BytesIO(base64.b64decode(result.url.partition(",")[2], validate=True)))
        image.load()
        assert image.size == (1024, 1024)


async def test_unsupported_field_is_named_before_sending() -> None:
    async with emulated() as emulator:
        async with quick(emulator, "defapi") as session:
            with pytest.raises(InvalidRequest, match="num_images"):
                await session.generate("a fox", num_images=2)
            with pytest.raises(InvalidRequest, match="aspect_ratio"):
                await session.generate("a fox", aspect_ratio="1:1")
        async with quick(emulator) as session:
            with pytest.raises(InvalidRequest, match="callback_url"):
                await session.generate("a fox", callback_url="https://hook.example/")
        assert emulator.stats().creates_received == 0
