"""For mkdocstrings: the reference shows the default of a field of an attrs class, not the call that makes the field."""

from typing import Any

from griffe import Attribute, Class, Expr, ExprCall, ExprKeyword, Extension


def default_of(call: ExprCall) -> Expr | str | None:
    """Return what `attrs.field(...)` gives the field by default; None if the field must be given."""
    for argument in call.arguments:
        if isinstance(argument, ExprKeyword) and argument.name == "default":
            return argument.value
        if isinstance(argument, ExprKeyword) and argument.name == "factory":
            return f"{argument.value}()"
    return None


class AttrsFields(Extension):
    """Replaces `field(default=1, validator=...)` by `1`, once the members of a class are known."""

    def on_class_members(self, *, cls: Class, **_: Any) -> None:
        """Replace the values of the fields of one class."""
        for member in cls.members.values():
            call = member.value if isinstance(member, Attribute) else None
            if isinstance(call, ExprCall) and call.canonical_path == "attrs.field":
                member.value = default_of(call)
