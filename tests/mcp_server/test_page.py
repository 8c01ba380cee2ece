"""The configurations of clients in docs/mcp.md start the command with options that it has."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanobanana_async.cli.app import app

PAGE = Path(__file__).parent.parent.parent / "docs" / "mcp.md"


def servers() -> Iterator[dict[str, Any]]:
    """Yield what each configuration says about the server."""
    for kind, text in re.findall(r"^```(json|toml)\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        document = json.loads(text) if kind == "json" else tomllib.loads(text)
        for table in ("mcpServers", "servers", "mcp_servers"):
            yield from document.get(table, {}).values()


def test_configurations_of_clients_have_options_of_the_command() -> None:
    found = list(servers())
    assert len(found) == 3
    for server in found:
        _, bound, _ = app.parse_args(server["args"], exit_on_error=False, print_error=False)
        assert bound.arguments["output"] == Path("/home/me/images")
        assert bound.arguments["max_credits"] == 500
