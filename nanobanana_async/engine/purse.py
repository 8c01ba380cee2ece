"""The session's money: what each job has set aside follows its record."""

from collections.abc import Mapping
from decimal import Decimal

from attrs import frozen

from nanobanana_async.engine.entry import Entry
from nanobanana_async.gateways.contract import Gateway
from nanobanana_async.jobs import JobRecord, JobState
from nanobanana_async.ledger.base import Allowance, Refusal
from nanobanana_async.policy.caps import NEVER_AGAIN, Cap, Consent, NamedBudget
from nanobanana_async.policy.credits import NOTHING, Price, Prices, charge_of, price_in, why_not

# While jobs of other processes may free credits of a named batch, the ledger is asked again this often.
ASK_AGAIN_S = 1.0


@frozen
class _Drawn:
    caps: tuple[Cap, ...]
    price: Price


class Purse:
    """Knows prices, what was spent, and which caps a job draws on.

    What is set aside belongs to the job's key and generation, not to its entry: whoever settles a job later need not
    hold the same one.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.prices = Prices()
        self.spent = NOTHING
        self.remaining: Decimal | None = None
        """The gateway's last word on the account; a hint."""
        self.live: Mapping[str, Entry] = {}
        """The jobs that this session follows."""
        self._drawn: dict[str, _Drawn] = {}
        """Key -> where the price of a job is set aside that was perhaps bought, until it is settled."""

    def consent(self, entry: Entry, now: float) -> Consent:
        """Tell whether every cap of this job lets it be bought; what was perhaps bought is always finished."""
        if not entry.budgets or entry.key in self._drawn or entry.record.perhaps_bought:
            return Consent.NOW
        return self._consent(entry, now)

    def consent_again(self, entry: Entry, now: float) -> Consent:
        """Tell whether every cap of this job lets it be bought once more, whatever became of the last purchase."""
        return self._consent(entry, now) if entry.budgets else Consent.NOW

    def why(self, entry: Entry) -> str:
        """Say which cap is used up."""
        price = self.price(entry)
        used_up = (cap for cap in entry.budgets if cap.consent(price) is Consent.NEVER)
        return next(used_up).why(price)

    def asks_at(self, entry: Entry) -> float:
        """When time alone may let a job be bought that has to wait."""
        return min((cap.asks_at for cap in entry.budgets if isinstance(cap, NamedBudget)), default=NEVER_AGAIN)

    def price(self, entry: Entry) -> Price:
        """Return what a job is taken to cost."""
        request = entry.record.request
        if request is None:  # it was attached by its task id, and is never bought
            return Price("", NOTHING)
        example = self._gateway.example_credits(request)
        return self.prices.estimate(self._gateway.price_class(request), example, entry.expected_credits)

    def max_credits(self, entry: Entry) -> Decimal | None:
        """Return the cap that the ledger counts for a job's batch."""
        return next((cap.max_credits for cap in entry.budgets if isinstance(cap, NamedBudget)), None)

    def reserve(self, entry: Entry) -> None:
        """Set the job's price aside before its create leaves."""
        if entry.budgets:
            price = self.price(entry)
            self._drawn[entry.key] = drawn = _Drawn(self._caps_of(entry), price)
            for cap in drawn.caps:
                cap.reserve(_purchase(entry.record), price)

    def refused(self, entry: Entry, allowance: Allowance, now: float) -> None:
        """Give back what was set aside: the ledger does not let the job be sent."""
        price = allowance.price
        for cap in self._caps_of(entry):
            cap.release(_purchase(entry.record))
        self._drawn.pop(entry.key, None)
        if allowance.refusal is Refusal.PRICE:
            self.prices.learn(price.price_class, price.credits)
            return
        blocked = allowance.refusal is Refusal.ESTIMATE
        waits = allowance.others or any(key in self.live for key in allowance.ours if key != entry.key)
        for cap in entry.budgets:
            if isinstance(cap, NamedBudget):
                why = why_not(price, limit=cap.max_credits, spent=allowance.spent, blocked=blocked)
                asks_at = now + ASK_AGAIN_S if waits else NEVER_AGAIN
                cap.refused(price, Consent.LATER if waits else Consent.NEVER, why, asks_at=asks_at)

    def moved(self, before: JobRecord, entry: Entry) -> Price | None:
        """Follow the record: learn what it says of the price, and settle what has ended.

        Returns what was set aside, if the job costs more than that.
        """
        record = entry.record
        if record.generation == before.generation:
            self.spent += (record.credits or 0) - (before.credits or 0)
        else:  # a new purchase does not undo the last one, and draws on what that one drew on
            entry.budgets = self._caps_of(entry)
            self._drawn.pop(entry.key, None)
        price = price_in(record)
        if price is not None or record.state is JobState.SUCCEEDED:
            self.prices.learn(self._class_of(record), price)
        drawn = self._drawn.get(entry.key)
        self._balance(entry)
        dearer = drawn is not None and price is not None and price != price_in(before) and price > drawn.price.credits
        return drawn.price if drawn is not None and dearer else None

    def found(self, entry: Entry) -> None:
        """Wait for a job again that was set aside for and is followed once more."""
        for cap in self._caps_of(entry):
            cap.follow(_purchase(entry.record))

    def let_go(self, entry: Entry) -> None:
        """Follow the record once more, which others may have moved; what is in doubt still stays set aside."""
        self._balance(entry)
        for cap in self._caps_of(entry):
            cap.park(_purchase(entry.record))

    def _consent(self, entry: Entry, now: float) -> Consent:
        for cap in entry.budgets:
            if isinstance(cap, NamedBudget) and now >= cap.asks_at:
                cap.ask_again()
        price = self.price(entry)
        return max(cap.consent(price) for cap in entry.budgets)

    def _balance(self, entry: Entry) -> None:
        caps = self._caps_of(entry)
        if not caps:
            return
        purchase, charge = _purchase(entry.record), charge_of(entry.record)
        for cap in caps:
            if charge is None:
                cap.release(purchase)
            elif charge.over:
                cap.settle(purchase, charge.credits)
            elif charge.credits is not None:
                cap.told(purchase, charge.credits)
        if charge is None or charge.over:
            self._drawn.pop(entry.key, None)

    def _class_of(self, record: JobRecord) -> str:
        return "" if record.request is None else self._gateway.price_class(record.request)

    def _caps_of(self, entry: Entry) -> tuple[Cap, ...]:
        drawn = self._drawn.get(entry.key)
        return entry.budgets if drawn is None else tuple(dict.fromkeys((*drawn.caps, *entry.budgets)))


def _purchase(record: JobRecord) -> tuple[str, int]:
    return record.key, record.generation
