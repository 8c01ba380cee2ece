"""Keys, headers and task ids of any characters: refused before anything is sent, or sent as they are."""

import pytest

from tests.faults.headers import play


@pytest.mark.slow
@pytest.mark.usefixtures("quiet_log")
def test_any_text_is_refused_locally_or_sent_unchanged() -> None:
    headers = play(1, 4000)
    assert headers.breaches == []
    places = {end.partition(":")[0] for end in headers.ends}
    assert places == {"key", "API key", "header", "task id"}
    assert all(headers.ends[f"{place}: refused"] > 100 for place in places)
    assert all(headers.ends[f"{place}: {end}"] > 50 for place, end in (("key", "sent"), ("task id", "sent")))
