"""For mkdocstrings: shows the defaults of attrs fields, and the comment behind a field that has no docstring."""

import functools
import tokenize
from pathlib import Path
from typing import Any

from griffe import Attribute, Class, Docstring, Expr, ExprCall, ExprKeyword, Extension


def default_of(call: ExprCall) -> Expr | str | None:
    """Return what `attrs.field(...)` gives the field by default; None if the field must be given."""
    for argument in call.arguments:
        if isinstance(argument, ExprKeyword) and argument.name == "default":
            return argument.value
        if isinstance(argument, ExprKeyword) and argument.name == "factory":
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


class Fields(Extension):
    """Replaces `field(default=1, validator=...)` by `1`, and makes a comment behind a field its docstring."""

    def on_class_members(self, *, cls: Class, **_: Any) -> None:
        """Change the fields of one class, once they are known."""
        for member in cls.members.values():
            if not isinstance(member, Attribute):
                continue
            if isinstance(call := member.value, ExprCall) and call.canonical_path == "attrs.field":
                member.value = default_of(call)
            if member.docstring is None and isinstance(path := cls.filepath, Path) and member.endlineno:
                text = comments_behind_code(path).get(member.endlineno)
                member.docstring = None if text is None else Docstring(text, parent=member)
