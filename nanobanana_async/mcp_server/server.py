"""The tools of the server, as models see them, and the connection over stdin and stdout."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import anyio.to_thread
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    ContentBlock,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nanobanana_async import ImageRequest, NanoBananaError, __version__
from nanobanana_async.mcp_server.answers import error_text, images_answer, list_answer, unfinished_answer
from nanobanana_async.mcp_server.references import to_reference
from nanobanana_async.mcp_server.service import Purchase, Reporter, Service
from nanobanana_async.models import Resolution

DEFAULT_WAIT_S, MAX_WAIT_S = 45.0, 3600.0
"""How long a call waits by default: clients give a call up after 60 seconds."""

INSTRUCTIONS = (
    "Images cost the user's money. Each request_id is one purchase: choose a new one for each image that you want, and"
    " repeat a call with the same request_id and the same arguments until the image is there. Calls with different"
    " request_ids may run at once. The server has a budget in credits, which the user sets."
)


class _Call(BaseModel):
    model_config = ConfigDict(extra="forbid")


class GetImage(_Call):
    """Wait for the images of an earlier request_id, save and show them. Buys nothing."""

    request_id: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9._-]{1,100}$",
            description="Names this purchase and its files, such as harbour-at-dawn-1. The same id is paid once.",
        ),
    ]
    wait_s: Annotated[
        float,
        Field(
            ge=0,
            le=MAX_WAIT_S,
            description="The most seconds to wait. A job that takes longer goes on: then call again.",
        ),
    ] = DEFAULT_WAIT_S


class GenerateImage(GetImage):
    """Buy images for a prompt, save them and return their paths, their price and small previews.

    If they are not ready after wait_s seconds, the answer is the state of the job: call again with the same request_id
    and the same arguments, which joins the job. However often it is called, one request_id is paid once.
    """

    prompt: Annotated[str, Field(min_length=1, description="What the image shows.")]
    aspect_ratio: Annotated[str | None, Field(description="Such as 16:9, 1:1 or 3:4.")] = None
    resolution: Annotated[Resolution | None, Field(description="The price depends on it.")] = None
    num_images: Annotated[int, Field(ge=1, le=6, description="Each image is paid for.")] = 1


class EditImage(GenerateImage):
    """Buy images that are made of a prompt and reference images. Otherwise like generate_image."""

    images: Annotated[
        list[str],
        Field(
            min_length=1,
            description="Absolute paths of files, such as those of earlier images, or https links. The user chooses"
            " which folders are allowed.",
        ),
    ]


class ListImages(_Call):
    """List the newest jobs first: request_id, state, price, prompt and files; and the budget. Buys nothing."""

    limit: Annotated[int, Field(ge=1, le=100)] = 20


TOOLS: dict[str, type[_Call]] = {
    "generate_image": GenerateImage,
    "edit_image": EditImage,
    "get_image": GetImage,
    "list_images": ListImages,
}


class ImageServer:
    """Answers the calls of one client."""

    def __init__(self, service: Service, allowed: Sequence[Path]) -> None:
        self._service = service
        self._allowed = allowed
        self.server: Server[dict[str, Any]] = Server(
            "nanobanana",
            version=__version__,
            instructions=INSTRUCTIONS,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
        )

    async def serve(self) -> None:
        """Serve over stdin and stdout until stdin ends. Meanwhile what is printed goes to stderr."""
        async with stdio_server() as (reading, writing):
            await self.server.run(reading, writing, self.server.create_initialization_options())

    async def _list_tools(
        self, context: ServerRequestContext[dict[str, Any]], params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        del context, params
        return ListToolsResult(tools=[_describe(name, call) for name, call in TOOLS.items()])

    async def _call_tool(
        self, context: ServerRequestContext[dict[str, Any]], params: CallToolRequestParams
    ) -> CallToolResult:
        kind = TOOLS.get(params.name)
        if kind is None:
            return _error(f"there is no tool {params.name!r}: the tools are {', '.join(TOOLS)}")
        try:
            call = kind.model_validate(params.arguments or {})
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
            return _error(f"this call bought nothing: {'; '.join(wrong)}")

        async def report(percent: float, state: str) -> None:
            await context.session.report_progress(percent, 100.0, state)

        try:
            return CallToolResult(content=await self._answer(params.name, call, report))
        except NanoBananaError as error:
            return _error(error_text(self._service, getattr(call, "request_id", ""), error))

    async def _answer(self, tool: str, call: _Call, report: Reporter) -> list[ContentBlock]:
        service = self._service
        if isinstance(call, GenerateImage):
            purchase = await service.buy(call.request_id, await self._to_request(call), call.wait_s, report)
        elif isinstance(call, GetImage):
            collected = await service.collect(call.request_id, call.wait_s, report)
            if collected is None:
                raise _not_bought(call.request_id)
            purchase = collected
        else:
            return await list_answer(service, call.limit if isinstance(call, ListImages) else 0)
        return await self._outcome(tool, purchase)

    async def _outcome(self, tool: str, purchase: Purchase) -> list[ContentBlock]:
        if not purchase.ended.is_set():
            return await unfinished_answer(self._service, purchase, tool)
        if purchase.error is not None:
            raise purchase.error
        return await images_answer(self._service, purchase)

    async def _to_request(self, call: GenerateImage) -> ImageRequest:
        named = call.images if isinstance(call, EditImage) else ()
        images = [await anyio.to_thread.run_sync(to_reference, image, self._allowed) for image in named]
        return ImageRequest(
            call.prompt,
            images=images,
            num_images=call.num_images,
            aspect_ratio=call.aspect_ratio,
            resolution=call.resolution,
        )


def _not_bought(request_id: str) -> NanoBananaError:
    return NanoBananaError(
        f"nothing was bought under request_id {request_id}: list_images lists what was, generate_image buys"
    )


def _describe(name: str, call: type[_Call]) -> Tool:
    buys = issubclass(call, GenerateImage)
    schema = call.model_json_schema()
    del schema["title"], schema["description"]  # the tool has them: models need them once
    return Tool(
        name=name,
        description=" ".join((call.__doc__ or "").split()),
        input_schema=schema,
        annotations=ToolAnnotations(
            read_only_hint=not buys, destructive_hint=False, idempotent_hint=True, open_world_hint=buys
        ),
    )


def _error(text: str) -> CallToolResult:
    return CallToolResult(is_error=True, content=[TextContent(text=text)])
