"""docs/examples/engines/celery_tasks.py with short timeouts; its workers write down each row they begin.

`python -m tests.engines.celery_app ROWS FOLDER RESULTS` queues the rows of a JSON file and stores what they return.
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.engines.shop import record_start

signals: Any = import_module("celery.signals")
recipe: Any = import_module("celery_tasks")

app = recipe.app
# For each of them ten seconds or more by default.
app.conf.broker_transport_options |= {
    "visibility_timeout": 4,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
}


def record(args: list[Any], **_: object) -> None:
    """Record the row of a task that begins."""
    record_start(args[0])


signals.task_prerun.connect(record)


def main(rows: str, folder: str, results: str) -> None:
    """Queue the rows and wait for all of them."""
    prompts = json.loads(Path(rows).read_text())
    waiting = {key: recipe.image_of.delay(key, prompt, folder) for key, prompt in prompts.items()}
    Path(results).write_text(json.dumps({key: result.get(timeout=120) for key, result in waiting.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
