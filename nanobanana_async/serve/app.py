"""The ASGI application: its routes, who may use it, and how a request waits for its job."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import anyio
from attrs import define, field
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from nanobanana_async import GenerationResult, Job, JobState, NanoBananaError, Session
from nanobanana_async.engine.routed_engine import one_gateway_error
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.gateways.base import is_loopback
from nanobanana_async.otel.prometheus import CONTENT_TYPE, PrometheusMetrics
from nanobanana_async.serve.answers import ApiError, api_error, images_body, json_response
from nanobanana_async.serve.bearer_tokens import LOCAL, Token, find_token, tokens_error
from nanobanana_async.serve.bodies import Body, BodyTracker, read_form, read_json
from nanobanana_async.serve.fields import ResponseFormat, wanted_of
from nanobanana_async.serve.orders import Attempt, Order, Orders
from nanobanana_async.session import engine_of
from nanobanana_async.validators import as_timeout, check_kind

MAX_FORM_BYTES = 64 << 20
_CLIENT_LEFT = 499  # never seen by a client

Endpoint = Callable[[Request, Token], Awaitable[Response]]


def make_app(
    session: Session,
    *,
    tokens: Sequence[Token] | None = None,
    models: Sequence[str] | Mapping[str, str] | None = None,
    answer_within_s: float | None = None,
    max_form_bytes: int = MAX_FORM_BYTES,
    metrics: PrometheusMetrics | None = None,
) -> Starlette:
    """Return an ASGI application that speaks OpenAI's images API, to mount in your own or to serve alone.

    Your application opens and closes the session. Without `tokens` only clients on loopback are answered. `models` are
    the names that requests may give: those of the gateway, or a mapping from other names to them; by default the
    session's model. A request waits until its job has ended, or with `answer_within_s` for so long: then it is
    answered 503, and a retry waits for the same job. `metrics`, whose `telemetry` is an observer of the session, are
    shown at `/metrics` to who may use the API.
    """
    check_kind("session", session, Session, "a Session")
    if tokens is not None and (fault := tokens_error(tokens)) is not None:
        del tokens  # they may be mere texts, and some tools show the locals of a traceback
        raise fault
    check_kind(
        "models", models, (list, tuple, Mapping, type(None)), "a list of names, or a mapping from names to models"
    )
    names = [gateway.model for gateway in session.gateways] if models is None else models
    if (
        any(token.budget is not None for token in tokens or ())
        and len({gateway.name for gateway in session.gateways}) > 1
    ):
        raise one_gateway_error("a token with a budget")
    api = _Api(
        session=session,
        tokens=None if tokens is None else tuple(tokens),
        models=dict(names) if isinstance(names, Mapping) else {name: name for name in names},
        answer_within_s=as_timeout("answer_within_s", answer_within_s),
        max_form_bytes=max_form_bytes,
        orders=Orders(session, (LOCAL,) if tokens is None else tuple(tokens)),
        metrics=metrics,
    )
    if not api.models:
        raise ConfigurationError("models is empty: name the models that requests may use, or leave it out")
    routes = [
        Route("/v1/images/generations", api.endpoint(api.generate), methods=["POST"]),
        Route("/v1/images/edits", api.endpoint(api.edit), methods=["POST"]),
        Route("/v1/models", api.endpoint(api.list_models)),
        Route("/v1/jobs/{key}", api.endpoint(api.show_job)),
        Route("/healthz", api.health),
    ]
    if metrics is not None:
        routes.append(Route("/metrics", api.endpoint(api.show_metrics)))
    app = Starlette(routes=routes, exception_handlers={HTTPException: _on_http_error, Exception: _on_bug})
    app.state.orders = api.orders
    return app


@define(kw_only=True)
class _Api:
    session: Session
    tokens: tuple[Token, ...] | None
    models: Mapping[str, str]
    answer_within_s: float | None
    max_form_bytes: int
    orders: Orders = field()
    metrics: PrometheusMetrics | None

    def endpoint(self, handler: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        """Return a handler that answers errors in OpenAI's envelope, and only those who may use it."""

        async def handle(request: Request) -> Response:
            tracker = BodyTracker(request.receive)
            request = Request(request.scope, tracker)
            try:
                return await handler(request, self._token_of(request))
            except ApiError as error:
                await tracker.discard_rest()
                return error.response()
            except NanoBananaError as error:
                return api_error(error).response()
            except ClientDisconnect:
                return Response(status_code=_CLIENT_LEFT)

        return handle

    def _token_of(self, request: Request) -> Token:
        if self.tokens is None:
            _check_local(request)
            return LOCAL
        token = find_token(self.tokens, request.headers.get("authorization", ""))
        if token is None:
            raise ApiError(401, "send one of this server's tokens: Authorization: Bearer TOKEN", code="invalid_api_key")
        return token

    async def generate(self, request: Request, token: Token) -> Response:
        """Buy images for a prompt."""
        return await self._answer(request, token, await read_json(request))

    async def edit(self, request: Request, token: Token) -> Response:
        """Buy images made from reference images."""
        return await self._answer(request, token, await read_form(request, self.max_form_bytes))

    async def _answer(self, request: Request, token: Token, body: Body) -> Response:
        wanted = wanted_of(body.fields, body.images, self.models)
        attempt = Attempt.of(request.headers)
        job, order = await self.orders.submit(token, wanted.request, attempt)
        if "respond-async" in request.headers.get("prefer", "").lower():
            self.orders.end_request(order, attempt, answered=True)
            # Relative to the path under which the application is mounted.
            place = f"{request.scope.get('root_path', '')}/v1/jobs/{job.key}"
            headers = {"location": place, "preference-applied": "respond-async"}
            return json_response(_status_of(job), 202, key=job.key, headers=headers)
        response = await self._wait(request, job, order, attempt, wanted.response_format)
        return Response(status_code=_CLIENT_LEFT) if response is None else response

    async def _wait(
        self, request: Request, job: Job, order: Order, attempt: Attempt, response_format: ResponseFormat
    ) -> Response | None:
        """Return the answer once the job has ended; None if the client leaves before: the job goes on."""
        response: Response | None = None

        async def wait_for_disconnect() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        try:
            async with anyio.create_task_group() as group:
                group.start_soon(wait_for_disconnect)
                response = await self._images_or_error(job, response_format, self.answer_within_s)
                group.cancel_scope.cancel()
        finally:
            final = response is not None and response.headers.get("x-should-retry") != "true"
            self.orders.end_request(order, attempt, answered=final)
        return response

    async def _images_or_error(self, job: Job, response_format: ResponseFormat, timeout: float | None) -> Response:
        try:
            result = await job.result(timeout=timeout)
            body = await self._images(result, response_format)
        except NanoBananaError as error:
            return api_error(error, job.key).response()
        return await anyio.to_thread.run_sync(lambda: json_response(body, key=job.key))

    async def _images(self, result: GenerationResult, response_format: ResponseFormat) -> dict[str, Any]:
        if response_format == "url":
            return images_body(result, None)
        contents = [await self.session.download(image) for image in result.images]
        return await anyio.to_thread.run_sync(images_body, result, contents)

    async def show_job(self, request: Request, token: Token) -> Response:
        """Return the state of a job, and its images or its error once it has ended."""
        key = request.path_params["key"]
        job = await self.session.job(key) if key.startswith(token.batch) else None
        if job is None:
            raise ApiError(404, "there is no such job of this token", code="job_not_found")
        status, outcome = _status_of(job), job.outcome()
        if isinstance(outcome, NanoBananaError):
            status |= api_error(outcome, key).envelope()
        elif job.state is JobState.SUCCEEDED:
            wanted: ResponseFormat = "b64_json" if request.query_params.get("response_format") == "b64_json" else "url"
            status["response"] = await self._images(outcome or await job.result(), wanted)
        return json_response(status, key=key)

    async def list_models(self, _: Request, __: Token) -> Response:
        """Return the models that requests may name."""
        owners = {gateway.model: gateway.name for gateway in reversed(self.session.gateways)}
        first = self.session.gateway.name
        models = [
            {"id": name, "object": "model", "created": 0, "owned_by": owners.get(model, first)}
            for name, model in self.models.items()
        ]
        return json_response({"object": "list", "data": models})

    async def show_metrics(self, _: Request, __: Token) -> Response:
        """Return the metrics of the session, for Prometheus."""
        assert self.metrics is not None
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def health(self, _: Request) -> Response:
        """Return 200 while jobs can be taken."""
        try:
            engine_of(self.session)
        except NanoBananaError:
            return json_response({"status": "stopping"}, 503)
        return json_response({"status": "ok"})


def _status_of(job: Job) -> dict[str, Any]:
    return {
        "id": job.key,
        "object": "image.job",
        "created": int(job.created_at.timestamp()),
        "status": job.state.value,
        "progress": round(job.progress, 3),
    }


def _check_local(request: Request) -> None:
    """Raise `ApiError` unless a program on this machine asks: a page in its browser is none."""
    try:
        named = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:
        named = ""
    here = request.client is not None and is_loopback(request.client.host) and is_loopback(named)
    if not here or "origin" in request.headers:
        message = "without tokens this server answers programs on its own machine only: give it tokens"
        raise ApiError(403, message, code="loopback_only")


async def _on_http_error(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    what = {404: "there is no such endpoint", 405: "this endpoint does not take this method"}.get(status, "refused")
    return ApiError(status, what, code="unknown_endpoint").response()


async def _on_bug(_: Request, __: Exception) -> Response:
    return ApiError(500, "the server has a bug, which is in its log", code="server_error", retry=True).response()
