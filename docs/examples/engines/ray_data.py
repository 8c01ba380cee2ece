"""An image for each row of a Parquet file: `python ray_data.py prompts.parquet results s3://bucket/images`.

Ray runs the rows of a dead actor again. Each finds its job by its key, in the ledger that all actors share.
"""

import os
import sys
from asyncio import Lock

import ray

from nanobanana_async import ApiMall, NanoBananaError, Session


class Images:
    """What each actor runs: many rows at once in one event loop, with one session."""

    def __init__(self, folder):
        self.folder, self.session, self.opening = folder, None, Lock()

    async def __call__(self, row):
        async with self.opening:
            if self.session is None:
                session = Session(ApiMall.from_env(), ledger=os.environ["NANOBANANA_LEDGER"])
                await session.open()
                self.session = session
        try:
            result = await self.session.generate(row["prompt"], idempotency_key=str(row["key"]))
            (file,) = await self.session.save(result, self.folder)
            return row | {"file": str(file), "error": ""}
        except NanoBananaError as error:  # raised, the error of one row would end the whole run
            return row | {"file": "", "error": str(error)}


def main(source, target, folder):
    rows = ray.data.read_parquet(source).repartition(target_num_rows_per_block=16)
    actors = ray.data.ActorPoolStrategy(size=2, max_concurrent_calls_per_actor=4)
    rows.map(Images, fn_constructor_args=[folder], compute=actors, num_cpus=0.25).write_parquet(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
