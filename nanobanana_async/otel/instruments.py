"""Create the metrics."""

from opentelemetry import metrics

from nanobanana_async.otel.names import (
    CREATES,
    CREDITS,
    DELAY_BUCKETS,
    JOB_BUCKETS,
    JOB_DURATION,
    JOBS_ENDED,
    LEDGER_REFUSALS,
    LEDGER_WRITE,
    OPERATION_BUCKETS,
    OPERATION_DURATION,
    POLL_DELAY,
    POLLS,
    REFUSALS,
    SLOTS_HELD,
    SLOTS_LIMIT,
    WRITE_BUCKETS,
)


class Instruments:
    """The metrics, shared by all sessions."""

    def __init__(self, meter: metrics.Meter) -> None:
        histogram, counter = meter.create_histogram, meter.create_counter
        self.operation_s = histogram(
            OPERATION_DURATION,
            "s",
            "From the request of a job until its end.",
            explicit_bucket_boundaries_advisory=OPERATION_BUCKETS,
        )
        self.job_s = histogram(
            JOB_DURATION,
            "s",
            "From the acceptance of a job until a poll reported its end.",
            explicit_bucket_boundaries_advisory=JOB_BUCKETS,
        )
        self.delay_s = histogram(
            POLL_DELAY,
            "s",
            "From the end of a job, by the gateway's clock, until a poll reported it.",
            explicit_bucket_boundaries_advisory=DELAY_BUCKETS,
        )
        self.write_s = histogram(
            LEDGER_WRITE,
            "s",
            "How long the ledger took to record a change of a job's state.",
            explicit_bucket_boundaries_advisory=WRITE_BUCKETS,
        )
        self.writes_refused = counter(
            LEDGER_REFUSALS, "{write}", "Writes that the ledger refused, since the job was another owner's by then."
        )
        self.ended = counter(JOBS_ENDED, "{job}", "Jobs that ended or became uncertain, by state.")
        self.creates = counter(CREATES, "{request}", "Creates, by outcome.")
        self.refusals = counter(REFUSALS, "{request}", "Creates refused with 429: no free job slot, or above the rate.")
        self.polls = counter(POLLS, "{request}", "Polls of jobs.")
        self.credits = counter(CREDITS, "{credit}", "Credits charged for jobs after refunds, counted when they end.")
        self.held = meter.create_up_down_counter(SLOTS_HELD, "{slot}", "Job slots held, as far as is known.")
        self.limit = meter.create_gauge(SLOTS_LIMIT, "{slot}", "The learned limit of job slots.")
