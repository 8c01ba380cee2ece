"""The links to the pictures, when they expire, and what stands behind them."""

import re

from attrs import frozen

from nanobanana_async.emulator.composition import Picture
from nanobanana_async.emulator.pictures import data_uri, media_type, size_of
from nanobanana_async.emulator.settings import WorldSettings
from nanobanana_async.emulator.tasks import Task

PREFIX = "/cdn/"
_PATH = re.compile(r"/cdn/([0-9a-f]+)/([\w-]+)/(?:image-(\d\d)|result|cover)\.(?:png|jpe?g)")


@frozen
class Link:
    """A link as it was read back: when it was issued, whose picture it shows."""

    issued_at: float
    task_id: str
    index: int


def links(task: Task, now: float, base_url: str) -> list[str]:
    """Return fresh links to all images of a job; the moment of issue is part of each."""
    stamp = f"{round(now * 1000):x}" if now > 0 else "0"
    folder = f"{base_url}{PREFIX}{stamp}/{task.task_id}"
    ending = task.order.output_format
    return [f"{folder}/image-{number:02d}.{ending}" for number in range(1, task.order.images + 1)]


def read_link(path: str) -> Link | None:
    """Return what a path of the CDN points at, or None when it was never issued."""
    if (match := _PATH.fullmatch(path)) is None:
        return None
    stamp, task_id, number = match.groups()
    return Link(int(stamp, 16) / 1000, task_id, int(number or 1) - 1)


def picture(task: Task, index: int, settings: WorldSettings) -> Picture:
    """Return the picture a job made, as a value that can be painted any time."""
    width, height = size_of(task.order.aspect_ratio, task.order.resolution, settings.picture_scale)
    return Picture(
        prompt=task.order.prompt,
        seed=settings.seed,
        index=index,
        width=width,
        height=height,
        png=task.order.output_format == "png",
    )


def data_uris(task: Task, settings: WorldSettings) -> list[str]:
    """Return all images of a job as data URIs; painted now."""
    return [data_uri(picture(task, index, settings)) for index in range(task.order.images)]


def content_type(task: Task) -> str:
    """Return the media type of a job's images."""
    return media_type(png=task.order.output_format == "png")
