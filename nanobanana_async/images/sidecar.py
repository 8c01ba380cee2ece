"""The facts about an image that are written beside it, as `NAME.json`, when the user asks for that."""

from typing import Any

from nanobanana_async.images.destination import Saved
from nanobanana_async.images.saved import PurchasedImage
from nanobanana_async.models import GenerationResult, to_json_types


def sidecar_facts(result: GenerationResult, purchased: PurchasedImage, saved: Saved, name: str) -> dict[str, Any]:
    """Return the facts about a saved image, as JSON types."""
    request = None if result.request is None else result.request.to_dict()
    settings = {field: value for field, value in (request or {}).items() if field not in ("prompt", "callback_url")}
    return {
        "file_name": name,
        "sha256": saved.sha256,
        "job_key": result.key,
        "task_id": result.task_id,
        "image": purchased.index + 1,
        "key": purchased.row_key,
        "prompt": purchased.prompt,
        "settings": {**settings, "model": purchased.model},
        "credits": to_json_types(result.credits),
        "created_at": to_json_types(result.created_at),
        "completed_at": to_json_types(result.completed_at),
    }
