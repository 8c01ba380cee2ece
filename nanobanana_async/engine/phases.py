"""What a session does with a job: its phase, and the table of what a phase may become.

`JobRecord.state` says where a job stands at the gateway, and moves along `TRANSITIONS`. `TrackedJob.phase` says what
this session does with the job, and moves along `PHASE_TRANSITIONS`. Only the `Scheduler` moves it:

- The `Engine` brings a job in: CLAIMING (new, or found) or RECOVERING (resolved by hand).
- In CLAIMING, FOREIGN, RECOVERING, MOVING, IN_FLIGHT and WITHDRAWING a step of the job runs, one at a time. It
  returns a `Next`, and `Scheduler._apply` alone carries that out.
- In PREPARING the job waits for uploads of its reference images (`References`), and no step runs.
- In QUEUED the `Dispatcher` decides when the job leaves; in SCHEDULED, FOREIGN and HOLDING_SLOTS a timer does; in
  CHECKING the `Reconciler`.
- `withdraw_requested` is an intent, set while a step runs. It is carried out when the step is over, if the job is then
  PENDING.
- Who wants the job (`callers`, `has_handle`, `may_buy`) is no phase: `Engine.add_caller`, `drop_caller` and `keep`.
"""

import enum
from collections.abc import Mapping


class Phase(enum.Enum):
    """What this session does with a job."""

    KNOWN = "known, and not followed by this session"
    CLAIMING = "a ledger call decides who owns it"
    FOREIGN = "another owner follows it; we read its record from the ledger"
    RECOVERING = "ours; a write to the ledger decides how it goes on"
    PREPARING = "its local reference images are brought to the gateway; it was not sent"
    QUEUED = "waits in a queue to be sent, or to be polled"
    SCHEDULED = "waits for its time"
    IN_FLIGHT = "a request of it is in flight, or its answer is being written"
    CHECKING = "in doubt; the gateway's history decides how it goes on"
    MOVING = "not sent; a write gives it to another account of the session"
    WITHDRAWING = "its withdrawal is being written"
    HOLDING_SLOTS = "uncertain, not followed; holds its slots while it may still run"
    UNFOLLOWED = "no longer followed: it ended, or the wait ended with `wait_error`, and it may run on"

    __hash__ = object.__hash__  # as in `JobState`


_P = Phase

# What a phase may become. Any other move is a bug.
PHASE_TRANSITIONS: Mapping[Phase, frozenset[Phase]] = {
    _P.KNOWN: frozenset({_P.CLAIMING, _P.RECOVERING}),
    _P.CLAIMING: frozenset(
        {_P.FOREIGN, _P.RECOVERING, _P.PREPARING, _P.QUEUED, _P.SCHEDULED}
        | {_P.WITHDRAWING, _P.HOLDING_SLOTS, _P.KNOWN, _P.UNFOLLOWED}
    ),
    # FOREIGN -> FOREIGN: its owner still follows it.
    # FOREIGN -> WITHDRAWING: it went to another owner while it was being withdrawn, and came back.
    _P.FOREIGN: frozenset(
        {_P.FOREIGN, _P.RECOVERING, _P.PREPARING, _P.QUEUED, _P.SCHEDULED}
        | {_P.WITHDRAWING, _P.HOLDING_SLOTS, _P.KNOWN, _P.UNFOLLOWED}
    ),
    # Any phase of a job of ours -> FOREIGN: the ledger says, or a write shows, that it went to another owner.
    _P.RECOVERING: frozenset(
        {
            _P.FOREIGN,
            _P.PREPARING,
            _P.QUEUED,
            _P.SCHEDULED,
            _P.CHECKING,
            _P.WITHDRAWING,
            _P.HOLDING_SLOTS,
            _P.UNFOLLOWED,
        }
    ),
    # PREPARING -> MOVING: its account's gateway does not take or answer its uploads.
    _P.PREPARING: frozenset({_P.FOREIGN, _P.QUEUED, _P.MOVING, _P.WITHDRAWING, _P.UNFOLLOWED}),
    _P.QUEUED: frozenset({_P.FOREIGN, _P.MOVING, _P.IN_FLIGHT, _P.WITHDRAWING, _P.UNFOLLOWED}),
    _P.MOVING: frozenset({_P.FOREIGN, _P.PREPARING, _P.QUEUED, _P.WITHDRAWING, _P.UNFOLLOWED}),
    # SCHEDULED -> SCHEDULED: a poll is planned again, as durations are learned or when a callback came.
    # SCHEDULED -> RECOVERING: a job in doubt waits for its repeat, and the gateway's history shows its task.
    # SCHEDULED -> MOVING: its account refused it plainly, and is not tried again soon.
    _P.SCHEDULED: frozenset(
        {_P.FOREIGN, _P.SCHEDULED, _P.RECOVERING, _P.QUEUED, _P.MOVING, _P.WITHDRAWING, _P.UNFOLLOWED}
    ),
    # IN_FLIGHT -> PREPARING: before its create is sent, a URL of an upload is too old.
    _P.IN_FLIGHT: frozenset(
        {
            _P.FOREIGN,
            _P.PREPARING,
            _P.QUEUED,
            _P.SCHEDULED,
            _P.CHECKING,
            _P.WITHDRAWING,
            _P.HOLDING_SLOTS,
            _P.UNFOLLOWED,
        }
    ),
    _P.CHECKING: frozenset({_P.FOREIGN, _P.RECOVERING, _P.UNFOLLOWED}),
    _P.WITHDRAWING: frozenset({_P.FOREIGN, _P.UNFOLLOWED}),
    _P.HOLDING_SLOTS: frozenset({_P.CLAIMING, _P.RECOVERING, _P.UNFOLLOWED}),
    _P.UNFOLLOWED: frozenset({_P.CLAIMING, _P.RECOVERING}),
}

FOLLOWED_PHASES = frozenset(Phase) - {_P.KNOWN, _P.HOLDING_SLOTS, _P.UNFOLLOWED}
"""The job is followed, and is in `Scheduler.tracked`."""

UNDECIDED_PHASES = frozenset({_P.CLAIMING, _P.RECOVERING})
"""It is not decided yet how the job goes on."""

STALE_RECORD_PHASES = frozenset({_P.CLAIMING, _P.FOREIGN})
"""After a failure in one of these, the job's state in the ledger is unknown."""
