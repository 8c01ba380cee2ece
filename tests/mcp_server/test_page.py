"""The configurations of clients in docs/mcp.md can be read, and start the command with options that it has."""

import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nanobanana_async.cli.app import app
from nanobanana_async.emulator import API_KEY, Emulator
from tests.support.command import environment
from tests.support.lazy import lazy

if TYPE_CHECKING:
    import mcp
    import mcp.client.stdio
else:
    mcp = lazy("mcp")

PAGE = Path(__file__).parents[2] / "docs" / "mcp.md"
COMMAND = "/home/me/.venv/bin/nanobanana"
KEY = {"APIMALL_API_KEY": API_KEY}


def documents() -> Iterator[dict[str, Any]]:
    """Yield each block of JSON and TOML; fails for one that can't be read."""
    for kind, text in re.findall(r"^```(json|toml)\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        yield json.loads(text) if kind == "json" else tomllib.loads(text)


def servers() -> dict[str, dict[str, Any]]:
    """Return how each client starts the command, by the name of the client's table."""
    found: dict[str, dict[str, Any]] = {
        table: document[table]["nanobanana"]
        for document in documents()
        for table in ("mcpServers", "servers", "mcp_servers")
        if table in document
    }
    (line,) = re.findall(r"^claude mcp add .*$", PAGE.read_text("utf-8"), re.MULTILINE)
    words = shlex.split(line)
    command, *arguments = words[words.index("--") + 1 :]
    return {**found, "claude mcp add": {"command": command, "args": arguments, "env": {}}}


def settings_file() -> str:
    """Return the settings file of the page."""
    found = re.findall(r"^```toml\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (text,) = (text for text in found if "[mcp]" in text)
    return str(text)


def test_page_has_the_configurations_of_four_clients_and_a_settings_file() -> None:
    assert len(list(documents())) == 4
    assert set(servers()) == {"mcpServers", "servers", "mcp_servers", "claude mcp add"}
    assert {server["command"] for server in servers().values()} == {COMMAND}


def test_configurations_of_clients_have_options_of_the_command() -> None:
    found = [server["args"] for name, server in servers().items() if name != "claude mcp add"]
    assert len(found) == 3
    for arguments in found:
        _, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
        assert bound.arguments["output"] == Path("/home/me/images")
        assert bound.arguments["max_credits"] == 500


@pytest.mark.slow
@pytest.mark.parametrize("name", servers())
async def test_command_of_a_configuration_starts_and_lists_its_tools(name: str, tmp_path: Path) -> None:
    """As the client starts it, with the folders of the page in a temporary one, and without a shell's variables."""
    server = servers()[name]
    (tmp_path / "photos").mkdir()
    settings = tmp_path / "config.toml"
    key_file = tmp_path / "apimall.key"
    key_file.write_text(API_KEY)
    key_file.chmod(0o600)
    if name == "claude mcp add":  # all that the command needs is in the settings file
        text = settings_file().replace("/home/me", str(tmp_path)).replace("~/.config/nanobanana", str(tmp_path))
        settings.write_text(text)
    else:
        settings.write_text("")
    settings.chmod(0o600)
    async with Emulator() as emulator:
        variables = {str(variable): str(KEY.get(variable, value)) for variable, value in server["env"].items()}
        base = environment(NANOBANANA_CONFIG=str(settings), NANOBANANA_LEDGER=str(tmp_path / "jobs.sqlite"))
        if name != "claude mcp add":
            base["NANOBANANA_BASE_URL"] = emulator.url
        arguments = [each.replace("/home/me", str(tmp_path)) for each in server["args"]]
        parameters = mcp.StdioServerParameters(
            command=sys.executable, args=["-m", "nanobanana_async", *arguments], env=base | variables
        )
        log = tmp_path / "stderr.txt"
        with log.open("w") as stderr:
            async with mcp.Client(mcp.client.stdio.stdio_client(parameters, errlog=stderr)) as client:
                tools = {tool.name for tool in (await client.list_tools()).tools}
    assert tools == {"generate_image", "edit_image", "get_image", "list_images"}
    assert log.read_text() == ""
    assert (tmp_path / "images").is_dir()
