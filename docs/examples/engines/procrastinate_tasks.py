"""Images as Procrastinate jobs: `python procrastinate_tasks.py` is a worker, on any number of hosts.

Queue and ledger are one database. A job that is run again finds its purchase under its key.
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


async def main():
    async with app.open_async(), Session(ApiMall.from_env(), ledger=DATABASE) as session:
        await app.run_worker_async(concurrency=50, additional_context={"session": session})


if __name__ == "__main__":
    asyncio.run(main())
