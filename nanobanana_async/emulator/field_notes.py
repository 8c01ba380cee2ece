"""Answers that public clients met and the references do not show, by name: `field_note("text instead of the image")`.

Each is a `Fault` that changes the true answer about a task that has ended; other answers stay as they are. Use them in
a `Script` or a `RandomFault`.
"""

import json
from collections.abc import Callable
from typing import Any

from nanobanana_async.emulator.faults import Fault, answer
from nanobanana_async.emulator.messages import EmulatedResponse

_ENDS = frozenset({"completed", "success", "failed"})
_REFUSAL = "I can't make this image because it may violate the content policy"
_EMPTY = "the model returned an empty result, which is billed"

Task = dict[str, Any]
Change = Callable[[Task], None]


def _link(task: Task) -> Any:
    """Remove the images of a task, and return the first link."""
    result, output = task.pop("result", None) or [{}], task.pop("output", None) or {}
    links = output.get("resultUrls") or [result[0].get("image")]
    task["primary_url"] = task["image_url"] = None
    return links[0]


def _text_beside_the_image(task: Task) -> None:
    task["result"] = [{"text": "a fox in the snow"}, {"image": _link(task)}]


def _text_instead_of_the_image(task: Task) -> None:
    _link(task)
    task["result"] = [{"text": _REFUSAL}]


def _empty_result(task: Task) -> None:
    _link(task)
    task.update(result=[{"image": ""}], status_reason={"message": _EMPTY})


def _word_of_the_other_dialect(task: Task) -> None:
    if task["status"] == "failed":
        task.update(status="error", error="no capacity")
    else:
        task["status"] = "success" if task["status"] == "completed" else "completed"


def _reason_in_error(task: Task) -> None:
    _link(task)
    task.update(status="failed", error={"code": "no_capacity", "message": "no capacity"}, status_reason=None)


def _reason_in_an_object(task: Task) -> None:
    _link(task)
    task.update(status="failed", error_message={"message": "no capacity"}, status_reason=None)


def _url_in_an_object(task: Task) -> None:
    task["result"] = [{"url": _link(task)}]


def _big_image_url(task: Task) -> None:
    task["result"] = {"big_image_url": _link(task)}


def _urls_in_objects(task: Task) -> None:
    task["output"] = {"resultUrls": [{"url": _link(task)}]}


def _output_list(task: Task) -> None:
    task["output"] = [_link(task)]


def _output_images(task: Task) -> None:
    task["output"] = {"images": [_link(task)]}


_CHANGES: dict[str, Change] = {
    "text beside the image": _text_beside_the_image,
    "text instead of the image": _text_instead_of_the_image,
    "empty result": _empty_result,
    "end word of the other dialect": _word_of_the_other_dialect,
    "reason in error": _reason_in_error,
    "reason in an object": _reason_in_an_object,
    "link in url": _url_in_an_object,
    "link in big_image_url": _big_image_url,
    "links in objects": _urls_in_objects,
    "links in output": _output_list,
    "links in output.images": _output_images,
}

_ANSWERS: dict[str, Fault] = {
    "wait in the body": answer(
        429, headers={"Content-Type": "application/json"}, body=b'{"message": "slow down", "retry_after": 1}'
    ),
    "wait until the reset": answer(429, headers={"X-RateLimit-Reset": "1"}, body=b"slow down"),
    "too large for a proxy": answer(413, headers={"Content-Type": "text/html"}, body=b"<html>413</html>"),
    "host refuses the client": answer(403, headers={"Content-Type": "text/plain"}, body=b"error code: 1010"),
    "image not yet there": answer(404, headers={"Content-Type": "text/plain"}, body=b"not found"),
}

FIELD_NOTES = (*_CHANGES, *_ANSWERS)
"""The names of all notes."""


def field_note(name: str) -> Fault:
    """Return the fault that plays a note; raise `ValueError` for an unknown name."""
    if name in _ANSWERS:
        return _ANSWERS[name]
    if name not in _CHANGES:
        raise ValueError(f"no field note {name!r}; there are {', '.join(FIELD_NOTES)}")

    def change(response: EmulatedResponse) -> bytes:
        envelope = json.loads(response.content())
        task = envelope["data"] if isinstance(envelope.get("data"), dict) else envelope
        if task.get("status") in _ENDS:
            _CHANGES[name](task)
        return json.dumps(envelope).encode()

    return Fault(name=name, processed=True, change=change)
