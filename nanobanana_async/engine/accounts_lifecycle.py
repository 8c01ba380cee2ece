"""Open and close a session with several accounts: one ledger, and for each account connections and an engine."""

from collections.abc import Sequence
from contextlib import AsyncExitStack

from nanobanana_async.engine.account_memory import AccountMemory
from nanobanana_async.engine.engine import Engine
from nanobanana_async.engine.lifecycle import SessionComponents, SessionLifecycle
from nanobanana_async.engine.routed_engine import JointPrices, RoutedEngine
from nanobanana_async.engine.routing import Router
from nanobanana_async.policy.budget import MemoryCap


class AccountsLifecycle(SessionLifecycle):
    """A `SessionLifecycle` over the components of several accounts, which share a ledger, a guard and the caps."""

    def __init__(self, name: str, parts: Sequence[SessionComponents], order: Sequence[str], *, by_wait: bool) -> None:
        super().__init__(name, parts[0])
        self.parts = tuple(parts)
        self._order = tuple(order)
        self._by_wait = by_wait

    async def _open_all(self, stack: AsyncExitStack) -> tuple[Engine, list[AccountMemory]]:
        ledger, max_credits = self._components.ledger, self._components.max_credits
        await ledger.open()
        stack.push_async_callback(ledger.aclose)
        prices = JointPrices()
        caps = () if max_credits is None else (MemoryCap(max_credits, prices),)
        engines: list[Engine] = []
        memories: list[AccountMemory] = []
        opened: set[int] = set()
        for parts in self.parts:
            for part in (parts.transport, parts.downloads):
                if id(part) not in opened:  # a fake transport may serve several accounts
                    opened.add(id(part))
                    await part.open()
                    stack.push_async_callback(part.aclose)
            engine = parts.make_engine(caps)
            engines.append(engine)
            memories.append(await AccountMemory.load_and_keep_saving(ledger, engine))
        by_account = {engine.account: engine for engine in engines}
        router = Router([by_account[account] for account in self._order], by_wait=self._by_wait)
        return RoutedEngine(engines, router, prices), memories

    def leave_to_parent(self) -> None:
        """Leave everything that is open to the parent process; called in a child right after the fork."""
        super().leave_to_parent()
        if self._components.guard.forked:
            for parts in self.parts[1:]:
                parts.leave_to_parent()
