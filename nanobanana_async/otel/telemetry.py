"""The OpenTelemetry observer."""

from collections.abc import Callable

from opentelemetry import metrics, trace

from nanobanana_async._version import __version__
from nanobanana_async.events import Event
from nanobanana_async.otel.instruments import Instruments
from nanobanana_async.otel.job_spans import JobSpans
from nanobanana_async.otel.names import SCOPE


class Telemetry:
    """Record spans and metrics of any number of sessions: `Session(observers=[Telemetry()])`.

    The providers default to the global ones, even if these are set later. Prompts and reference URLs are recorded only
    with `record_prompts`; API keys and the gateway's messages never are.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        *,
        record_prompts: bool = False,
    ) -> None:
        self._tracer = trace.get_tracer(SCOPE, __version__, tracer_provider)
        self._instruments = Instruments(metrics.get_meter(SCOPE, __version__, meter_provider))
        self._record_prompts = record_prompts

    def observer(self) -> Callable[[Event], None]:
        """Return the observer of one session; the session calls this method itself."""
        return JobSpans(self._tracer, self._instruments, record_prompts=self._record_prompts)
