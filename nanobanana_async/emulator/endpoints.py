"""The endpoints: create, query, image download, and the errors of each gateway."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from email.utils import format_datetime
from math import ceil

from attrs import evolve

from nanobanana_async.emulator import apimall, defapi
from nanobanana_async.emulator import images as cdn
from nanobanana_async.emulator.accounts import CreateRequest, Refusal, Task, TaskState
from nanobanana_async.emulator.faults import Fault
from nanobanana_async.emulator.files import PUBLIC_PREFIX, serve_file
from nanobanana_async.emulator.images import paint
from nanobanana_async.emulator.messages import EmulatedRequest, EmulatedResponse, Endpoint, Gateway
from nanobanana_async.emulator.state import State

BLOCKED_MARKER = "[blocked]"
JSON: Mapping[str, str] = {"Content-Type": "application/json"}
_PLAIN: Mapping[str, str] = {"Content-Type": "text/plain"}


def create(
    state: State,
    now: float,
    gateway: Gateway,
    headers: Mapping[str, str],
    sent: EmulatedRequest,
    *,
    read: bool,
) -> EmulatedResponse:
    """Return the response to a create. `read` is False when a fault hides it from the client."""
    outcome = _accept_or_refuse(state, now, gateway, headers, sent)
    if isinstance(outcome, Refusal):
        state.counters.refused[outcome.status] += 1
        return refuse(state, now, gateway, outcome)
    state.counters.lost += not read
    body_out = apimall.created_body(outcome) if gateway == "apimall" else defapi.created_body(outcome)
    return EmulatedResponse(200, JSON, body_out)


def _accept_or_refuse(
    state: State, now: float, gateway: Gateway, headers: Mapping[str, str], sent: EmulatedRequest
) -> Task | Refusal:
    """Return the job, new or of a repeated key, or the first refusal.

    A refused create leaves no key behind.
    """
    if refusal := authorization_refusal(state, gateway, headers, create=True):
        return refusal
    if refusal := state.accounts[gateway].count_request_or_refuse(now, create=True):
        return refusal
    parse = apimall.parse_create if gateway == "apimall" else defapi.parse_create
    request = parse(sent.json, state.settings)
    if isinstance(request, Refusal):
        return request
    urls = [reference.url for reference in request.references]
    if state.settings.check_references and (missing := state.files.missing_among(urls, state.base_url)):
        return Refusal(400, "invalid_request", f"no such reference image: {missing}")
    key = headers.get("idempotency-key") or None
    if gateway == "apimall" and key is not None:
        known = state.keys.lookup(now, key, request.canonical)
        if isinstance(known, Task):
            state.counters.replays += 1
        if known is not None:
            return known
    if refusal := _check_request(state, gateway, request):
        return refusal
    return state.accept(now, gateway, key, request)


def _check_request(state: State, gateway: Gateway, request: CreateRequest) -> Refusal | None:
    if BLOCKED_MARKER in request.prompt:
        return apimall.BLOCKED if gateway == "apimall" else defapi.BLOCKED
    account = state.accounts[gateway]
    return account.credit_refusal(state.price(gateway, request)) or account.slot_refusal(request)


def query(
    state: State,
    now: float,
    gateway: Gateway,
    headers: Mapping[str, str],
    task_id: str,
    *,
    read: bool,
) -> EmulatedResponse:
    """Return the response to a query. `read` is False when a fault hides it from the client."""
    task = _find(state, now, gateway, headers, task_id)
    if isinstance(task, Refusal):
        return refuse(state, now, gateway, task)
    task_state, status = _status(state, now, task)
    first_report = task.first_seen_at is None
    state.counters.on_poll(now, task, task_state, status, read=read)
    if first_report and task.first_seen_at is not None:
        state.mark_end_seen(task)
    progress = _progress_field(state, now, task, task_state)
    if gateway == "apimall":
        return EmulatedResponse(200, JSON, _apimall_query_body(state, now, task, task_state, status, progress))
    shape = state.settings.query_shape
    if task_state is TaskState.SUCCEEDED and state.settings.data_uris:
        return _with_body(
            lambda: defapi.query_body(task, task_state, status, cdn.data_uris(task, state.settings), shape, progress)
        )
    urls = urls_of(state, now, task, task_state)
    return EmulatedResponse(200, JSON, defapi.query_body(task, task_state, status, urls, shape, progress))


def download(state: State, now: float, request: EmulatedRequest, headers: Mapping[str, str]) -> EmulatedResponse:
    """Return a stored file or an image, painted later by the driver, or an error."""
    state.counters.leaks += "authorization" in headers
    if request.path.startswith(PUBLIC_PREFIX):
        return serve_file(state.files, request, headers)
    link = cdn.read_link(request.path)
    task = state.tasks.get(link.task_id) if link is not None else None
    if link is None or task is None or link.index >= task.request.image_count:
        return EmulatedResponse(404, _PLAIN, b"no such image")
    expire_s = state.settings.links_expire_after_s
    if expire_s is not None and link.issued_at + expire_s <= now:
        return EmulatedResponse(state.settings.expired_link_status, _PLAIN, b"this link has expired")
    spec = cdn.image_spec(task, link.index, state.settings)
    headers_out = {"Content-Type": cdn.content_type(task)}
    return EmulatedResponse(200, headers_out, b"", make_body=lambda: paint(spec))


def callback_body(state: State, now: float, task: Task) -> bytes:
    """Return the callback body of a finished job."""
    task_state = task.state_at(now)
    images = urls_of(state, now, task, task_state)
    if task_state is TaskState.SUCCEEDED and state.settings.data_uris:
        images = cdn.data_uris(task, state.settings)
    return defapi.callback_body(task, task_state, configured_word(state, defapi.status_word(task_state)), images)


def _find(state: State, now: float, gateway: Gateway, headers: Mapping[str, str], task_id: str) -> Task | Refusal:
    if refusal := admission_refusal(state, now, gateway, headers):
        return refusal
    if gateway == "defapi" and not task_id:
        return defapi.NO_TASK_ID
    task = state.tasks.get(task_id)
    if task is None or task.gateway != gateway or now < task.created_at + state.settings.visible_after_s:
        return apimall.NOT_FOUND if gateway == "apimall" else defapi.NOT_FOUND
    return task


def _status(state: State, now: float, task: Task) -> tuple[TaskState, str]:
    task_state = task.state_at(now)
    if task_state not in (TaskState.SUCCEEDED, TaskState.FAILED) and state.draw_unknown_status():
        status = "unknown"
    else:
        status = apimall.status_word(task_state) if task.gateway == "apimall" else defapi.status_word(task_state)
    return task_state, configured_word(state, status)


def configured_word(state: State, status: str) -> str:
    """Return the word that the settings put in place of a status."""
    return state.settings.status_words.get(status, status)


def _progress_field(state: State, now: float, task: Task, task_state: TaskState) -> Mapping[str, object]:
    """Return the field that says how much of a running job is done, if the settings want it."""
    if state.settings.progress == "absent" or task_state in (TaskState.SUCCEEDED, TaskState.FAILED):
        return {}
    percent = task.percent(now)
    return {"progress": percent if state.settings.progress == "number" else f"{percent}%"}


def _apimall_query_body(
    state: State, now: float, task: Task, task_state: TaskState, status: str, progress: Mapping[str, object]
) -> bytes:
    return apimall.query_body(
        task,
        task_state,
        status,
        urls_of(state, now, task, task_state),
        started_at=state.settings.started_at,
        request_id=state.request_id(),
        failure_field=state.settings.failure_field,
        progress=progress,
    )


def urls_of(state: State, now: float, task: Task, task_state: TaskState) -> list[str]:
    """Return links to the images of a job, or none while there are none."""
    if task_state is not TaskState.SUCCEEDED or now < task.ends_at + state.settings.images_after_s:
        return []
    return cdn.links(task, now, state.base_url)


def _with_body(make: Callable[[], bytes]) -> EmulatedResponse:
    return evolve(EmulatedResponse(200, JSON, b""), make_body=make)


def refuse(state: State, now: float, gateway: Gateway, refusal: Refusal) -> EmulatedResponse:
    """Return an error response, with Retry-After as the settings say, and count a 429 by its kind."""
    if refusal.kind is not None:
        state.counters.refusals_429[refusal.kind] += 1
    inside_200 = state.settings.refusals_in_200
    if gateway == "apimall":
        body = apimall.error_body(refusal, state.request_id())
    else:
        body = defapi.error_body(refusal, inside_200=inside_200)
    headers = dict(JSON)
    if refusal.wait_s is not None and state.settings.retry_after != "absent":
        headers["Retry-After"] = _retry_after(state, now, refusal.wait_s)
    return EmulatedResponse(200 if inside_200 else refusal.status, headers, body)


def refuse_for(state: State, now: float, endpoint: Endpoint, fault: Fault) -> EmulatedResponse:
    """Return the error response of an endpoint for the status of a fault."""
    gateway: Gateway = "apimall" if endpoint.startswith("apimall") else "defapi"
    status = fault.status or 503
    envelopes = apimall.FAULT_ENVELOPES if gateway == "apimall" else defapi.FAULT_ENVELOPES
    code, message = envelopes.get(status, ("error", "error"))
    if endpoint == "defapi.query" and status == 401:
        code = defapi.UNAUTHORIZED_QUERY.code
    refusal = Refusal(status, fault.code or code, fault.message or message)
    return refuse(state, now, gateway, refusal)


def admission_refusal(state: State, now: float, gateway: Gateway, headers: Mapping[str, str]) -> Refusal | None:
    """Check key, host and rates of a request that is no create."""
    refusal = authorization_refusal(state, gateway, headers, create=False)
    return refusal or state.accounts[gateway].count_request_or_refuse(now, create=False)


def authorization_refusal(
    state: State, gateway: Gateway, headers: Mapping[str, str], *, create: bool
) -> Refusal | None:
    """Return the 401 or 403 for a missing or wrong key or host, or None."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    key = key.strip() if scheme.lower() == "bearer" else ""
    settings = state.settings
    if gateway == "defapi":
        if key in settings.api_keys:
            return None
        return defapi.UNAUTHORIZED if create else defapi.UNAUTHORIZED_QUERY
    if settings.required_host is not None:
        host = headers.get("host", "").lower()
        if settings.required_host.lower() not in (host, host.partition(":")[0]):
            return apimall.WRONG_HOST
    if key in settings.api_keys:
        return None
    return apimall.NOT_APPROVED if key in settings.unapproved_keys else apimall.UNAUTHORIZED


def _retry_after(state: State, now: float, wait_s: float) -> str:
    if state.settings.retry_after == "seconds":
        return str(ceil(wait_s))
    at = state.settings.started_at + timedelta(seconds=ceil(now + wait_s))
    return format_datetime(at, usegmt=True)
