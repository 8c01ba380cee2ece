"""How a ledger identifies accounts, and the advice for a job that belongs to another one."""

import hashlib

from nanobanana_async.commands import jobs_command, quoted
from nanobanana_async.jobs import JobRecord


def named_account(gateway: str, name: str) -> str:
    """Return the ledger's identifier of an account with a name. The colon distinguishes it from a fingerprint."""
    return f"{gateway}:{name}"


def account_fingerprint(gateway: str, api_key: str) -> str:
    """Return the ledger's identifier of an account without a name: a hash that does not reveal the key."""
    return hashlib.sha256(f"nanobanana_async:{gateway}:{api_key}".encode()).hexdigest()[:24]


def account_conflict(record: JobRecord, gateway: str, account: str, ledger: object | None = None) -> str:
    """Return the message for a job of another account, with the ways to continue without a second purchase."""
    belongs = f"job {record.key} belongs to another account"
    if record.gateway != gateway:
        return f"{belongs}, at gateway {record.gateway} and not {gateway}: use that gateway"
    advice = account_advice(gateway, record.account, account, ledger)
    return f"{belongs}, {record.account}, and this session has account {account}. {advice}"


def account_advice(gateway: str, old: str, new: str, ledger: object | None) -> str:
    """Return how to continue the jobs of another account of the same gateway, in `ledger`."""
    hand_over = f"`{jobs_command('hand-over', '--from', old, '--to', new, ledger=ledger)}`"
    name = old.removeprefix(f"{gateway}:")
    if name != old:
        variable = f"NANOBANANA_ACCOUNT={quoted(name)}"
        remedy = f'name it with account="{name}" or {variable}; to change its name, run {hand_over}'
    else:
        remedy = (
            f"hand over its jobs: {hand_over} (give the account a name before that, with account=... or"
            " NANOBANANA_ACCOUNT, and its jobs stay its own at the next change of the key)"
        )
    return f"If both are one account whose API key was changed, {remedy}. Otherwise use the API key of that account"
