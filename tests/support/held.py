"""Jobs at the emulator that end when the test says so: none ends while the machine is busy with something else."""

import random

from nanobanana_async.emulator import Emulator

HELD_S = 300.0
BUYING_S = "5"
"""A `--timeout` within which a command buys, also on a busy machine; a job that is held outlives it."""


def let_pass(emulator: Emulator, seconds: float) -> None:
    """Move the clock of the emulated gateways on, without a pause."""
    server = emulator._running()
    server._started_at -= seconds
    server._callback_sender._changed.set()


class HeldJobs:
    """A `duration` for the emulator: the first `quick` jobs take `job_s` seconds, the others last until `release`.

    `Emulator.apimall()` and `.defapi()` draw durations too, for their `expected_job_s`: pass that, and no `quick`.
    """

    def __init__(self, *, quick: int = 0, job_s: float = 0.1) -> None:
        self._quick = quick
        self._job_s = job_s
        self._released = False

    def __call__(self, _rng: random.Random) -> float:
        """Draw the duration of one job, in seconds."""
        self._quick -= 1
        return self._job_s if self._released or self._quick >= 0 else HELD_S

    def hold(self) -> None:
        """Hold the jobs that are created from now on."""
        self._released = False

    def release(self, emulator: Emulator) -> None:
        """End the jobs that are held; later ones take `job_s`."""
        self._released = True
        let_pass(emulator, HELD_S)
