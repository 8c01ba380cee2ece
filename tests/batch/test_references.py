"""Rows with local reference images: what identifies them, and how often an image is read and uploaded."""

import hashlib
import math
from pathlib import Path

import pytest

from nanobanana_async import ApiMall, Session
from nanobanana_async.emulator import API_KEY
from nanobanana_async.emulator.composition import ImageSpec
from nanobanana_async.emulator.images import plain_png
from nanobanana_async.emulator.settings import EmulatorSettings
from nanobanana_async.emulator.simulator import GatewaySimulator
from nanobanana_async.images import local
from nanobanana_async.testing import EmulatorTransport
from tests.support.fakes import virtually
from tests.support.lazy import lazy

pd = lazy("pandas")
PNG = plain_png(ImageSpec("a cat", 0, 0, 8, 8, True))


@pytest.mark.slow
@virtually
async def test_hundreds_of_rows_with_one_image_read_and_upload_it_once(tmp_path: Path) -> None:
    (cat := tmp_path / "cat.png").write_bytes(PNG)
    rows = [{"prompt": f"fox {number}", "images": [cat]} for number in range(300)]
    simulator = GatewaySimulator(EmulatorSettings(job_limit=50))
    simulator.base_url = "https://gateway.apimall.ai"
    transport = EmulatorTransport(simulator, api_key=API_KEY)
    local._facts_of_file.cache_clear()
    # Virtual time passes while a thread reads: by days, which are no days for the upload.
    gateway = ApiMall(api_key=API_KEY, upload_lifetime_s=math.inf)
    async with Session(gateway, http=transport) as session:
        async with session.generate_many(rows) as outcomes:
            assert [outcome.error async for outcome in outcomes] == [None] * 300
        stats = simulator.stats(0.0)
    assert (stats.creates_accepted, stats.double_charges) == (300, 0)
    assert stats.uploads == {hashlib.sha256(PNG).hexdigest(): 1}
    assert local._facts_of_file.cache_info().misses == 1


@virtually
async def test_cells_of_a_data_frame_name_files_by_paths_only(tmp_path: Path) -> None:
    (cat := tmp_path / "cat.png").write_bytes(PNG)
    frame = pd.DataFrame({"prompt": ["a", "b", "c"], "image": [cat, "cat.png", None]})
    simulator = GatewaySimulator(EmulatorSettings())
    simulator.base_url = "https://gateway.apimall.ai"
    transport = EmulatorTransport(simulator, api_key=API_KEY)
    session = Session(ApiMall(api_key=API_KEY), http=transport)
    async with session, session.generate_many(frame, ordered=True) as outcomes:
        errors = [str(outcome.error) async for outcome in outcomes]
    assert errors[0] == errors[2] == "None"
    assert "for a file pass Path('cat.png')" in errors[1]
    sent = {job.prompt: list(job.reference_digests) for job in simulator.jobs(0.0)}
    assert sent == {"a": [hashlib.sha256(PNG).hexdigest()], "c": []}
