"""Which endpoint a path belongs to, the methods that it takes, and who answers."""

from collections.abc import Mapping

from nanobanana_async.emulator import apimall, defapi, files, uploads, webhooks
from nanobanana_async.emulator import images as cdn
from nanobanana_async.emulator.endpoints import create, download, query
from nanobanana_async.emulator.history import apimall_balance, defapi_balance, history
from nanobanana_async.emulator.messages import EmulatedRequest, EmulatedResponse, Endpoint
from nanobanana_async.emulator.state import State
from nanobanana_async.emulator.uploads import upload

METHODS: Mapping[Endpoint, tuple[str, ...]] = {
    "apimall.create": ("POST",),
    "apimall.query": ("GET",),
    "apimall.history": ("GET",),
    "apimall.balance": ("GET",),
    "apimall.upload": ("POST",),
    "apimall.put": ("PUT",),
    "apimall.webhooks": ("POST", "GET", "DELETE"),
    "defapi.create": ("POST",),
    "defapi.query": ("GET",),
    "defapi.balance": ("GET",),
    "cdn": ("GET", "HEAD"),
}
_PATHS: Mapping[str, Endpoint] = {
    apimall.CREATE_PATH: "apimall.create",
    apimall.HISTORY_PATH: "apimall.history",
    apimall.BALANCE_PATH: "apimall.balance",
    webhooks.PATH: "apimall.webhooks",
    uploads.BASE64_PATH: "apimall.upload",
    uploads.SIGN_PATH: "apimall.upload",
    uploads.FROM_URL_PATH: "apimall.upload",
    defapi.CREATE_PATH: "defapi.create",
    defapi.QUERY_PATH: "defapi.query",
    defapi.BALANCE_PATH: "defapi.balance",
}
# A path below one of these is that endpoint's, unless it has an own one above.
_PREFIXES: Mapping[str, Endpoint] = {
    apimall.QUERY_PREFIX: "apimall.query",
    files.PUT_PREFIX: "apimall.put",
    f"{webhooks.PATH}/": "apimall.webhooks",
}


def endpoint_of(path: str) -> Endpoint | None:
    """Return the endpoint of a path, or None."""
    if path in _PATHS:
        return _PATHS[path]
    for prefix, endpoint in _PREFIXES.items():
        if path.startswith(prefix) and "/" not in path[len(prefix) :]:
            return endpoint
    return "cdn" if path.startswith((cdn.PREFIX, files.PUBLIC_PREFIX)) else None


def respond(state: State, now: float, endpoint: Endpoint, request: EmulatedRequest, *, read: bool) -> EmulatedResponse:
    """Return the true response of an endpoint. `read` is False when a fault hides it from the client."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    match endpoint:
        case "apimall.create":
            return create(state, now, "apimall", headers, request, read=read)
        case "apimall.query":
            return query(state, now, "apimall", headers, request.path[len(apimall.QUERY_PREFIX) :], read=read)
        case "apimall.history":
            return history(state, now, headers, request.query)
        case "apimall.balance":
            return apimall_balance(state, now, headers)
        case "apimall.upload":
            return upload(state, now, request, headers)
        case "apimall.put":
            state.counters.leaks += "authorization" in headers
            return files.put(state.files, now, request, headers)
        case "apimall.webhooks":
            return webhooks.webhooks(state, now, request, headers)
        case "defapi.create":
            return create(state, now, "defapi", headers, request, read=read)
        case "defapi.query":
            return query(state, now, "defapi", headers, request.query.get("task_id", ""), read=read)
        case "defapi.balance":
            return defapi_balance(state, now, headers)
        case "cdn":
            return download(state, now, request, headers)
