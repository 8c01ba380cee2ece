"""All targets by their names."""

from tests.fuzz import (
    batch_targets,
    file_targets,
    gateway_targets,
    image_targets,
    ledger_targets,
    server_targets,
    stored_targets,
    text_targets,
)
from tests.fuzz.target import Target

_ALL = (
    *gateway_targets.TARGETS,
    *text_targets.TARGETS,
    *ledger_targets.TARGETS,
    *stored_targets.TARGETS,
    *batch_targets.TARGETS,
    *file_targets.TARGETS,
    *server_targets.TARGETS,
    *image_targets.TARGETS,
)
TARGETS: dict[str, Target] = {target.name: target for target in _ALL}
assert len(TARGETS) == len(_ALL), "two targets have the same name"
