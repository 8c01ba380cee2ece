"""Parse how many credits an account has."""

from decimal import Decimal
from typing import Any

from nanobanana_async.gateways.parsing import GatewayAnswer, parse_decimal


def parse_balance(answer: GatewayAnswer, data: Any, name: str) -> Decimal:
    """Return the credits, below zero for a debt; raise `UnexpectedResponse` if it is no number."""
    value = data.get(name) if isinstance(data, dict) else None
    if isinstance(value, str):
        value = value.strip()
    if isinstance(value, (int, Decimal)) and not isinstance(value, bool) and value < 0:
        # `-value` of a Decimal would raise Overflow for a huge exponent.
        owed = parse_decimal(value.copy_negate() if isinstance(value, Decimal) else -value)
    elif isinstance(value, str) and value.startswith("-"):
        owed = parse_decimal(value[1:])
    else:
        owed = None
    credits_left = parse_decimal(value) if owed is None else -owed
    if credits_left is None:
        raise answer.unexpected_response(f"data.{name}, the balance, is missing or is no number")
    return credits_left
