"""For mkdocstrings: shows fields with defaults and comments, the methods of `SessionPortal`, and nothing private."""

import functools
import tokenize
from pathlib import Path
from typing import Any

from griffe import Attribute, Class, Docstring, Expr, ExprCall, ExprKeyword, ExprLambda, Extension, Function, Module

MADE_BY_THE_LIBRARY = {"Batch", "Job", "SessionPortal"}
"""Classes whose objects a session, or `portal`, returns: their constructors are not for users."""


def default_of(call: ExprCall) -> Expr | str | None:
    """Return what `attrs.field(...)` gives the field by default; None if the field must be given."""
    for argument in call.arguments:
        if isinstance(argument, ExprKeyword) and argument.name == "default":
            return argument.value
        if isinstance(argument, ExprKeyword) and argument.name == "factory":
            if isinstance(argument.value, ExprLambda):
                return argument.value.body
            return "{}" if str(argument.value) == "dict" else f"{argument.value}()"
    return None


@functools.cache
def comments_behind_code(path: Path) -> dict[int, str]:
    """Return the comments of a file that stand behind code, as sentences, by their lines."""
    with tokenize.open(path) as file:
        tokens = [token for token in tokenize.generate_tokens(file.readline) if token.type == tokenize.COMMENT]
    found = {token.start[0]: token.string[1:].strip() for token in tokens if token.line[: token.start[1]].strip()}
    texts = {line: text for line, text in found.items() if not text.startswith(("noqa", "type:", "pyright:"))}
    return {line: f"{text[0].upper()}{text[1:]}." for line, text in texts.items() if text}


def without_private_names(value: Expr | str, module: Module) -> Expr | str:
    """Return a default with its private constants replaced by their values."""
    text = str(value)
    for name, constant in module.members.items():
        if name.startswith("_") and isinstance(constant, Attribute) and constant.value is not None:
            text = text.replace(f"dict({name})", str(constant.value))
            text = str(constant.value) if text == name else text
    return value if text == str(value) else text


class Fields(Extension):
    """Replaces `field(default=1, validator=...)` by `1`, and makes a comment behind a field its docstring."""

    def on_class_members(self, *, cls: Class, **_: Any) -> None:
        """Change the fields of one class, once they are known."""
        if cls.name in MADE_BY_THE_LIBRARY:
            cls.members.pop("__init__", None)
        for member in cls.members.values():
            if not isinstance(member, Attribute):
                continue
            if cls.name in MADE_BY_THE_LIBRARY and not str(member.value).startswith("_blocking("):
                member.value = None
            if isinstance(call := member.value, ExprCall) and call.canonical_path == "attrs.field":
                member.value = default_of(call)
            if member.docstring is None and isinstance(path := cls.filepath, Path) and member.endlineno:
                text = comments_behind_code(path).get(member.endlineno)
                member.docstring = None if text is None else Docstring(text, parent=member)

    def on_function(self, *, func: Function, **_: Any) -> None:
        """Leave out the parameter that catches misspelt names, to say what was meant."""
        if "misspelt" in func.parameters:
            del func.parameters["misspelt"]

    def on_class(self, *, cls: Class, **_: Any) -> None:
        """Show the values of private constants, once the whole package is loaded."""
        for member in cls.members.values():
            if isinstance(member, Attribute) and member.value is not None:
                member.value = without_private_names(member.value, cls.module)

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """Show each `_blocking(Session.method)` of the portal as a function with the method's parameters."""
        if pkg.name != "nanobanana_async":
            return
        portal, session = pkg["session_portal.SessionPortal"], pkg["session.Session"]
        methods = pkg["purchases.Purchases"].members | session.members
        for name, member in list(portal.members.items()):
            if isinstance(member, Attribute) and str(member.value).startswith("_blocking("):
                method = methods[name]
                shown = Function(
                    name,
                    parameters=method.parameters,
                    returns=method.returns,
                    docstring=Docstring(f"[Session.{name}][nanobanana_async.Session.{name}], which blocks."),
                    lineno=member.lineno,
                    endlineno=member.endlineno,
                )
                shown.overloads = method.overloads
                portal.set_member(name, shown)
