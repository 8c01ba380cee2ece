"""Find the rows of a batch whose jobs belong to another account, before anything is bought."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path

from nanobanana_async import ConfigurationError, Gateway
from nanobanana_async.accounts import account_advice
from nanobanana_async.formatting import plural
from nanobanana_async.jobs import JobRecord


class OtherAccounts:
    """Count the unfinished rows whose jobs another account may have bought; `ledger` is the file that has them.

    `ours` are the accounts of the run, if there are several.
    """

    def __init__(self, gateway: Gateway, ledger: Path, ours: Collection[str] = ()) -> None:
        self._ours = {gateway.account, *ours}
        self._gateway = gateway.name
        self._account = gateway.account
        self._ledger = ledger
        self._rows: Counter[tuple[str, str]] = Counter()

    def add(self, record: JobRecord) -> bool:
        """Count the row if its job belongs to another account, which may have bought it; return whether it does."""
        if record.account in self._ours or (record.gateway == self._gateway and record.never_accepted):
            return False
        self._rows[record.gateway, record.account] += 1
        return True

    @property
    def message(self) -> str:
        """Return how many rows belong to which account, and what to do; empty if there are none."""
        return "; ".join(self._sentence(gateway, account) for gateway, account in self._rows)

    def check(self) -> None:
        """Raise `ConfigurationError` if there are such rows: this account would not find their tasks."""
        if self._rows:
            raise ConfigurationError(f"nothing was bought: {self.message}")

    def _sentence(self, gateway: str, account: str) -> str:
        rows = self._rows[gateway, account]
        belong = f"{plural(rows, 'row')} {'belongs' if rows == 1 else 'belong'} to another account"
        if gateway != self._gateway:
            return f"{belong}, at gateway {gateway} and not {self._gateway}: use that gateway"
        advice = account_advice(gateway, account, self._account, self._ledger)
        return f"{belong}, {account}, and this run has account {', '.join(sorted(self._ours))}. {advice}"
