"""Runs docs/examples/engines/ray_data.py on a Ray of one host; its actors write down each row they begin."""

import sys
from importlib import import_module
from typing import Any

from tests.engines.shop import record_start

ray: Any = import_module("ray")
recipe: Any = import_module("ray_data")


class RecordedImages(recipe.Images):  # type: ignore[misc]
    """The recipe's class."""

    async def __call__(self, row: dict[str, Any]) -> Any:
        record_start(row["key"])
        return await super().__call__(row)


def main() -> None:
    """Run the recipe with the arguments of the command line."""
    recipe.Images = RecordedImages
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
    )
    recipe.main(*sys.argv[1:])
    ray.shutdown()


if __name__ == "__main__":
    main()
