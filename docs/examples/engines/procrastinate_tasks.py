"""Images as jobs: `python -c "import procrastinate_tasks; procrastinate_tasks.work()"` is a worker, on any host.

The queue is in the ledger's database. A job of a dead worker is run again and finds what it bought by its key.
"""

import asyncio
import os

from procrastinate import App, PsycopgConnector, RetryStrategy

from nanobanana_async import ApiMall, LedgerError, Session

DATABASE = os.environ["NANOBANANA_LEDGER"]
app = App(connector=PsycopgConnector(conninfo=DATABASE))


@app.task(pass_context=True, retry=RetryStrategy(exponential_wait=2, retry_exceptions=[LedgerError]))
async def image_of(context, key, prompt, folder):
    session = context.additional_context["session"]
    result = await session.generate(prompt, idempotency_key=key)
    await session.save(result, folder)


@app.periodic(cron="* * * * *")
@app.task(queueing_lock="rerun_stalled")
async def rerun_stalled(timestamp):
    for job in await app.job_manager.get_stalled_jobs():
        await app.job_manager.retry_job(job)


async def run():
    async with app.open_async(), Session(ApiMall.from_env(), ledger=DATABASE) as session:
        await app.run_worker_async(concurrency=50, additional_context={"session": session})


def work():
    asyncio.run(run())
