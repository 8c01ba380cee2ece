"""The text that Prometheus reads from `/metrics`."""

import re

import pytest

from nanobanana_async.testing import FakeTransport
from tests.support.fakes import FakeGateway, apimall, virtually


@virtually
async def test_the_learned_limit_is_shown_each_time_the_metrics_are_read() -> None:
    """SDKs before 1.45, which `serve` does not allow, forget a gauge that was read."""
    pytest.importorskip("opentelemetry.exporter.prometheus")
    from nanobanana_async.otel.prometheus import PrometheusMetrics

    metrics, gateway = PrometheusMetrics(), FakeGateway(job_s=5.0, limit=2)
    async with apimall(FakeTransport(gateway.answer), observers=[metrics.telemetry]) as session:
        async for _ in session.generate_many([f"fox {number}" for number in range(20)]):
            pass
        limit = float(session.stats().job_limit or 0)
    for _ in range(2):
        text = metrics.text().decode()
        shown = re.search(r"^nanobanana_slot_limit\S* (\S+)$", text, re.MULTILINE)
        assert shown is not None
        assert float(shown[1]) == limit == 2.0
