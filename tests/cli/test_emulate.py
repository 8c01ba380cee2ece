"""`nanobanana emulate`: it listens, prints its URL, and stops on Ctrl-C."""

import asyncio
import re
import signal
from asyncio.subprocess import Process
from typing import Any

import aiohttp
import pytest

from nanobanana_async.emulator import API_KEY, Emulator
from tests.support.command import ended, environment, nanobanana, started

pytestmark = pytest.mark.slow


async def url_of(process: Process) -> str:
    """Return the URL that the emulator prints first."""
    assert process.stdout is not None
    async with asyncio.timeout(20):
        line = (await process.stdout.readline()).decode()
    found = re.search(r"http://\S+", line)
    assert found is not None, line
    return found[0]


@pytest.mark.usefixtures("real_processes")
async def test_another_command_uses_the_emulator_until_ctrl_c() -> None:
    options = ("--port", "0", "--job-limit", "2", "--job-seconds", "0.1", "--credits", "8")
    async with started("emulate", *options, environ=environment()) as process:
        environ = environment(NANOBANANA_BASE_URL=await url_of(process), APIMALL_API_KEY=API_KEY)
        bought = await nanobanana("generate", "a fox", environ=environ)
        without_credits = await nanobanana("generate", "a fox", environ=environ)
        process.send_signal(signal.SIGINT)
        said = await ended(process)
    assert (bought.code, without_credits.code, said.code) == (0, 1, 130)
    assert "402" in without_credits.err
    assert said.complaint == "nanobanana: interrupted"


Json = dict[str, Any]


async def asked(method: str, url: str, body: Json | None = None) -> tuple[int, Json]:
    """Send a request with the key; return status and body of the answer."""
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with aiohttp.ClientSession() as client, client.request(method, url, json=body, headers=headers) as answer:
        return answer.status, await answer.json()


async def test_options_change_what_is_taken_and_stated() -> None:
    options = ("--extra-fields", "--check-references", "--progress", "text", "--data-uris", "--job-seconds", "60")
    async with started("emulate", "--port", "0", *options, environ=environment()) as process:
        url = await url_of(process)
        prompt = {"model": "nano-banana-pro", "prompt": "a fox"}
        status, bought = await asked("POST", f"{url}/api/v1/images/generate", {**prompt, "seed": 7})
        assert status == 200
        _, seen = await asked("GET", f"{url}/api/v1/images/{bought['data']['task_id']}")
        assert re.fullmatch(r"\d+%", seen["data"]["progress"])
        missing = {**prompt, "type": "image-to-image", "image_urls": [f"{url}/files/missing.png"]}
        assert (await asked("POST", f"{url}/api/v1/images/generate", missing))[0] == 400


async def test_without_options_extra_fields_are_refused() -> None:
    async with started("emulate", "--port", "0", environ=environment()) as process:
        url = await url_of(process)
        body = {"model": "nano-banana-pro", "prompt": "a fox", "seed": 7}
        status, refused = await asked("POST", f"{url}/api/v1/images/generate", body)
    assert status == 400
    assert "seed is not a parameter" in refused["error"]["message"]


@pytest.mark.parametrize(("delay", "shown"), [("0", 1), ("600", 0)])
async def test_lost_answer_is_bought_and_in_the_history_after_the_delay(delay: str, shown: int) -> None:
    options = ("--lose-answers", "1", "--history-delay", delay)
    async with started("emulate", "--port", "0", *options, environ=environment()) as process:
        url = await url_of(process)
        with pytest.raises(aiohttp.ClientConnectionError):
            await asked("POST", f"{url}/api/v1/images/generate", {"model": "nano-banana-pro", "prompt": "a fox"})
        _, history = await asked("GET", f"{url}/api/v1/images/history?page=1&limit=20")
    assert len(history["data"]["items"]) == shown


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("--lose-answers", "1.5", "a number of at least 0 and at most 1, not 1.5"),
        ("--drop-callbacks", "-1", "a number of at least 0 and at most 1, not -1.0"),
        ("--history-delay", "nan", "a number of at least 0 and at most 1e+09, not nan"),
        ("--job-limit", "0", "a whole number of at least 1 and at most 1000000000, not 0"),
        ("--port", "80000", "a number from 0 to 65535, not 80000"),
        ("--job-seconds", "0", "a number above 0 and at most 1e+09, not 0.0"),
        ("--progress", "often", "one of absent, number, text, not 'often'"),
    ],
)
async def test_value_out_of_range_names_its_option(option: str, value: str, wanted: str) -> None:
    port = () if option == "--port" else ("--port", "0")
    said = await nanobanana("emulate", *port, option, value)
    assert said.code == 2
    assert said.complaint == f"nanobanana: {option} must be {wanted}"


async def test_a_port_in_use_is_one_line_on_stderr() -> None:
    async with Emulator() as emulator:
        port = emulator.url.rpartition(":")[2]
        said = await nanobanana("emulate", "--port", port)
    assert said.code == 2
    assert said.complaint == (
        f"nanobanana: can't listen on 127.0.0.1 port {port}: another program listens there: end it, or choose another"
        " --port (0 selects a free one)"
    )


async def test_host_of_another_machine_is_one_line_on_stderr() -> None:
    said = await nanobanana("emulate", "--host", "192.0.2.1", "--port", "0")
    assert said.code == 2
    assert said.complaint.startswith("nanobanana: can't listen on 192.0.2.1 port 0: ")
    assert said.complaint.endswith(": choose with --host and --port")
