"""How far a batch reads ahead: whether there is room for one more row."""

from nanobanana_async.policy.concurrency import ConcurrencyPolicy

# Rows stored but not yet sent: enough that a free slot never waits for a ledger write.
PREFETCH = 8

# With this many outcomes not yet taken, beside as many running rows as there were at most, no more rows are pulled. The
# limit grows with the outcomes taken, so that an early break buys little and a slow loop does not empty the slots. Rows
# that run and rows that wait count together: when saving or the loop is slower than the gateway, each outcome taken
# pulls one row. If only those that wait counted, all slots would empty, then all fill at once.
UNTAKEN_AT_FIRST, MOST_UNTAKEN, TAKEN_PER_UNTAKEN = 4, 64, 4

# Rows that may be pulled, and so bought, before the first outcome is taken, and how many more per outcome taken: a
# loop that breaks after k outcomes has bought at most 128 + 3k rows at any limit of the account. An account with 100
# slots is filled before its first job ends; the slots of a larger account fill as outcomes are taken.
PULLED_AT_FIRST, PULLED_PER_TAKEN = 128, 3

# In an ordered batch a slow row holds back later ones: at most this multiple of the running rows is buffered.
ORDERED_WINDOW = 2


class Room:
    """Decides whether one more row may be pulled."""

    def __init__(self, concurrency: ConcurrencyPolicy, *, ordered: bool) -> None:
        held = 0 if concurrency.learn or concurrency.max_jobs is None else concurrency.max_jobs
        self._at_first = max(PULLED_AT_FIRST, held + PREFETCH)
        self._ordered = ordered
        self._most_held = 0
        self.pulled = 0
        """How many rows were pulled."""
        self.given_back = 0
        """How many of them were given back to the ledger, unsent."""
        self.taken = 0
        """How many outcomes were taken."""

    def has_room(self, *, running: int, unsent: int, waiting: int) -> bool:
        """Return whether one more row may be pulled, beside those that run, the unsent ones and waiting outcomes."""
        self._most_held = max(self._most_held, running - unsent)
        most = max(MOST_UNTAKEN, ORDERED_WINDOW * running) if self._ordered else MOST_UNTAKEN
        room = self._most_held + min(most, UNTAKEN_AT_FIRST + self.taken // TAKEN_PER_UNTAKEN)
        may_pull = self.pulled - self.given_back < self._at_first + PULLED_PER_TAKEN * self.taken
        return (not waiting or running + waiting < room) and may_pull and unsent < PREFETCH
