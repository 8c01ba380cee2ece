"""The names of all spans, events, attributes and metrics; docs/observability.md describes them.

`gen_ai.*`, `error.*` and `http.*` are names of the semantic conventions. All others begin with `nanobanana.`.
"""

SCOPE = "nanobanana_async"


# Attributes of spans, events and metrics.
OPERATION_NAME = "gen_ai.operation.name"
PROVIDER_NAME = "gen_ai.provider.name"
OUTPUT_TYPE = "gen_ai.output.type"
REQUEST_MODEL = "gen_ai.request.model"
CHOICE_COUNT = "gen_ai.request.choice.count"
INPUT_MESSAGES = "gen_ai.input.messages"
RESPONSE_ID = "gen_ai.response.id"
RESPONSE_MODEL = "gen_ai.response.model"
ERROR_TYPE = "error.type"
HTTP_STATUS = "http.response.status_code"
JOB_KEY = "nanobanana.job.key"
JOB_GENERATION = "nanobanana.job.generation"
JOB_ADOPTED = "nanobanana.job.adopted"
JOB_STATE = "nanobanana.job.state"
JOB_ATTEMPTS = "nanobanana.job.attempts"
JOB_POLLS = "nanobanana.job.polls"
JOB_CREDITS = "nanobanana.job.credits"
IMAGE_RESOLUTION = "nanobanana.image.resolution"
IMAGE_ASPECT_RATIO = "nanobanana.image.aspect_ratio"
IMAGE_FORMAT = "nanobanana.image.format"
IMAGE_REFERENCES = "nanobanana.image.references"
CREATE_OUTCOME = "nanobanana.create.outcome"
LIMIT_KIND = "nanobanana.limit.kind"
CREATE_DECISION = "nanobanana.create.decision"
WAIT = "nanobanana.wait"
POLL_STATUS = "nanobanana.poll.status"

# Events of a span.
CREATE_SENT = "nanobanana.create.sent"
CREATE_ACCEPTED = "nanobanana.create.accepted"
CREATE_THROTTLED = "nanobanana.create.throttled"
CREATE_FAILED = "nanobanana.create.failed"
POLL_ANSWERED = "nanobanana.poll.answered"
POLL_FAILED = "nanobanana.poll.failed"
CALLBACK_RECEIVED = "nanobanana.callback.received"
JOB_RESOLVED = "nanobanana.job.resolved"
JOB_ENDED = "nanobanana.job.ended"

# Metrics.
OPERATION_DURATION = "gen_ai.client.operation.duration"
JOB_DURATION = "nanobanana.job.duration"
POLL_DELAY = "nanobanana.poll.delay"
JOBS_ENDED = "nanobanana.job.ends"
CREATES = "nanobanana.create.requests"
REFUSALS = "nanobanana.create.refusals"
POLLS = "nanobanana.poll.requests"
LEDGER_WRITE = "nanobanana.ledger.write.duration"
LEDGER_REFUSALS = "nanobanana.ledger.write.refusals"
CREDITS = "nanobanana.credits.spent"
SLOTS_HELD = "nanobanana.slot.held"
SLOTS_LIMIT = "nanobanana.slot.limit"

# The only operation, as the conventions name it.
GENERATE = "generate_content"
# The conventions' buckets end at 82 s; a job that waits for its slot may take longer.
OPERATION_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
JOB_BUCKETS = (1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0)
WRITE_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
DELAY_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)
