"""The query endpoint of both gateways, the CDN, and the body of a callback."""

from collections.abc import Callable, Mapping

from attrs import evolve

from nanobanana_async.emulator import apimall, cdn, defapi
from nanobanana_async.emulator.pictures import paint
from nanobanana_async.emulator.replies import JSON, refuse, unauthorized
from nanobanana_async.emulator.state import State
from nanobanana_async.emulator.tasks import Phase, Refusal, Task
from nanobanana_async.emulator.values import Answer, Call, Gateway

_PLAIN: Mapping[str, str] = {"Content-Type": "text/plain"}


def query(
    state: State,
    now: float,
    gateway: Gateway,
    headers: Mapping[str, str],
    task_id: str,
    *,
    read: bool,
) -> Answer:
    """Return the answer to a status query; `read` says whether the caller gets to see it."""
    task = _find(state, now, gateway, headers, task_id)
    if isinstance(task, Refusal):
        if task.kind is not None:
            state.tally.refusals_429[task.kind] += 1
        return refuse(state, now, gateway, task)
    phase, status = _status(state, now, task)
    unseen = task.first_seen_at is None
    state.tally.looked(now, task, phase, status, read=read)
    if unseen and task.first_seen_at is not None:
        state.seen(task)
    if gateway == "apimall":
        return Answer(200, JSON, _shown_by_apimall(state, now, task, phase, status))
    shape = state.settings.query_shape
    if phase is Phase.SUCCEEDED and state.settings.data_uris:
        return _later(lambda: defapi.shown(task, phase, status, cdn.data_uris(task, state.settings), shape))
    urls = _urls(state, now, task, phase)
    return Answer(200, JSON, defapi.shown(task, phase, status, urls, shape))


def download(state: State, now: float, call: Call, headers: Mapping[str, str]) -> Answer:
    """Return a picture, whose painting is left to the driver, or say why there is none."""
    state.tally.leaks += "authorization" in headers
    link = cdn.read_link(call.path)
    task = state.tasks.get(link.task_id) if link is not None else None
    if link is None or task is None or link.index >= task.order.images:
        return Answer(404, _PLAIN, b"no such picture")
    expire_s = state.settings.links_expire_after_s
    if expire_s is not None and link.issued_at + expire_s <= now:
        return Answer(state.settings.expired_link_status, _PLAIN, b"this link has expired")
    picture = cdn.picture(task, link.index, state.settings)
    headers_out = {"Content-Type": cdn.content_type(task)}
    return Answer(200, headers_out, b"", paint=lambda: paint(picture))


def callback_body(state: State, now: float, task: Task) -> bytes:
    """Return what a callback says about a job that has ended."""
    phase = task.phase(now)
    images = _urls(state, now, task, phase)
    if phase is Phase.SUCCEEDED and state.settings.data_uris:
        images = cdn.data_uris(task, state.settings)
    return defapi.callback(task, phase, _word(state, defapi.word(phase)), images)


def _find(state: State, now: float, gateway: Gateway, headers: Mapping[str, str], task_id: str) -> Task | Refusal:
    if refusal := unauthorized(state, gateway, headers, create=False):
        return refusal
    if refusal := state.accounts[gateway].over_rate(now, create=False):
        return refusal
    if gateway == "defapi" and not task_id:
        return defapi.NO_TASK_ID
    task = state.tasks.get(task_id)
    if task is None or task.gateway != gateway or now < task.created_at + state.settings.visible_after_s:
        return apimall.NOT_FOUND if gateway == "apimall" else defapi.NOT_FOUND
    return task


def _status(state: State, now: float, task: Task) -> tuple[Phase, str]:
    phase = task.phase(now)
    if phase in (Phase.SUCCEEDED, Phase.FAILED):
        word = apimall.word(phase) if task.gateway == "apimall" else defapi.word(phase)
    elif state.is_unknown():
        word = "unknown"
    else:
        word = apimall.word(phase) if task.gateway == "apimall" else defapi.word(phase)
    return phase, _word(state, word)


def _word(state: State, word: str) -> str:
    return state.settings.status_words.get(word, word)


def _shown_by_apimall(state: State, now: float, task: Task, phase: Phase, status: str) -> bytes:
    return apimall.shown(
        task,
        phase,
        status,
        _urls(state, now, task, phase),
        started_at=state.settings.started_at,
        request_id=state.request_id(),
        failure_field=state.settings.failure_field,
    )


def _urls(state: State, now: float, task: Task, phase: Phase) -> list[str]:
    if phase is not Phase.SUCCEEDED or now < task.ends_at + state.settings.images_after_s:
        return []
    return cdn.links(task, now, state.base_url)


def _later(make: Callable[[], bytes]) -> Answer:
    return evolve(Answer(200, JSON, b""), paint=make)
