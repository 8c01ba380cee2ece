"""Refusals put into the envelope of the gateway that says them."""

from collections.abc import Mapping
from datetime import timedelta
from email.utils import format_datetime
from math import ceil

from nanobanana_async.emulator import apimall, defapi
from nanobanana_async.emulator.faults import Fault
from nanobanana_async.emulator.state import State
from nanobanana_async.emulator.tasks import Refusal
from nanobanana_async.emulator.values import Answer, Endpoint, Gateway

JSON: Mapping[str, str] = {"Content-Type": "application/json"}


def refuse(state: State, now: float, gateway: Gateway, refusal: Refusal) -> Answer:
    """Return the answer that says no, with Retry-After as the settings want it."""
    inside_200 = state.settings.refusals_in_200
    if gateway == "apimall":
        body = apimall.refused(refusal, state.request_id())
    else:
        body = defapi.refused(refusal, inside_200=inside_200)
    headers = dict(JSON)
    if refusal.wait_s is not None and state.settings.retry_after != "absent":
        headers["Retry-After"] = _retry_after(state, now, refusal.wait_s)
    return Answer(200 if inside_200 else refusal.status, headers, body)


def refuse_for(state: State, now: float, endpoint: Endpoint, fault: Fault) -> Answer:
    """Return the envelope in which an endpoint tells the status of a fault."""
    gateway: Gateway = "apimall" if endpoint.startswith("apimall") else "defapi"
    status = fault.status or 503
    words = apimall.FAULT_WORDS if gateway == "apimall" else defapi.FAULT_WORDS
    code, message = words.get(status, ("error", "error"))
    if endpoint == "defapi.query" and status == 401:
        code = defapi.UNAUTHORIZED_QUERY.code
    refusal = Refusal(status, fault.code or code, fault.message or message)
    return refuse(state, now, gateway, refusal)


def unauthorized(state: State, gateway: Gateway, headers: Mapping[str, str], *, create: bool) -> Refusal | None:
    """Return the 401 or 403 for a caller who may not ask, else None."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    key = key.strip() if scheme.lower() == "bearer" else ""
    settings = state.settings
    if gateway == "defapi":
        if key in settings.api_keys:
            return None
        return defapi.UNAUTHORIZED if create else defapi.UNAUTHORIZED_QUERY
    if settings.gateway_host is not None:
        host = headers.get("host", "").lower()
        if settings.gateway_host.lower() not in (host, host.partition(":")[0]):
            return apimall.WRONG_HOST
    if key in settings.api_keys:
        return None
    return apimall.NOT_APPROVED if key in settings.unapproved_keys else apimall.UNAUTHORIZED


def _retry_after(state: State, now: float, wait_s: float) -> str:
    if state.settings.retry_after == "seconds":
        return str(ceil(wait_s))
    at = state.settings.started_at + timedelta(seconds=ceil(now + wait_s))
    return format_datetime(at, usegmt=True)
