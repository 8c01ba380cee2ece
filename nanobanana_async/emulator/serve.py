"""The emulator as a program: listen, say how to get here, wait to be stopped."""

import asyncio
from typing import Unpack

from nanobanana_async.emulator.handle import Emulator
from nanobanana_async.emulator.pictures import require_pillow
from nanobanana_async.emulator.settings import API_KEY, EmulatorOptions

_HOW_TO = """\
Both gateways are emulated at {url}
No credits are spent here. Stop it with Ctrl-C.

API Mall:  export NANOBANANA_GATEWAY=apimall NANOBANANA_BASE_URL={url} APIMALL_API_KEY={key}
defapi:    export NANOBANANA_GATEWAY=defapi NANOBANANA_BASE_URL={url} DEFAPI_API_KEY={key}"""


async def serve(port: int = 8080, *, host: str = "127.0.0.1", **settings: Unpack[EmulatorOptions]) -> None:
    """Serve until cancelled, after printing how to point a client here."""
    require_pillow()
    async with Emulator(host=host, port=port, **settings) as emulator:
        print(_HOW_TO.format(url=emulator.url, key=API_KEY), flush=True)
        await asyncio.Event().wait()
