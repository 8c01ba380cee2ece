"""A process with a session and a receiver for API Mall's deliveries, run by `test_two_processes.py`.

Arguments: the gateway's URL, the ledger, the public URL that the gateway calls, the port that is listened on, and how
many jobs are bought. It prints what it got as JSON, once it has its results and its standard input is closed.
"""

import asyncio
import json
import sys

from aiohttp import web
from aiohttp.typedefs import Handler

from nanobanana_async import ApiMall, Session
from nanobanana_async.emulator import API_KEY
from nanobanana_async.webhooks import CallbackReceiver
from tests.support.loopback import RecordingObserver, until

SLOW_S = 600.0
"""What the session expects of a job: without a delivery it polls minutes later."""


async def main(url: str, ledger: str, public_url: str, port: str, jobs: str) -> None:
    deliveries: list[int] = []

    @web.middleware
    async def counted(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        deliveries.append(response.status)
        return response

    observer = RecordingObserver()
    gateway = ApiMall(api_key=API_KEY, base_url=url, expected_job_s=SLOW_S)
    session = Session(gateway, ledger=ledger, observers=[observer])
    app = web.Application(middlewares=[counted])
    app.add_routes(CallbackReceiver(session, public_url=public_url).aiohttp_routes())
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(port)).start()
    async with session:
        await until(lambda: session._require_engine().poller.fallback._webhook_since is not None)
        print("ready", flush=True)
        rows = session.generate_many(f"fox {number}" for number in range(int(jobs)))
        bought = [outcome.ok async for outcome in rows]
        print("bought", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        polls = session.stats().polls
    await runner.cleanup()
    print(json.dumps({"bought": bought, "deliveries": deliveries, "events": len(observer.events), "polls": polls}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
