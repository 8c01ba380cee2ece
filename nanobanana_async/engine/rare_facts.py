"""What few jobs of a session need: all others share one object with the defaults, since very many may be held."""

import math
from collections import deque
from collections.abc import Mapping
from decimal import Decimal

from attrs import evolve, frozen

from nanobanana_async.engine.late_answer import LateAnswer
from nanobanana_async.engine.uploaded_image import NO_UPLOADS, UploadedImage
from nanobanana_async.images.local import LocalImagesByDigest
from nanobanana_async.jobs import JobState

NO_SOURCES: LocalImagesByDigest = {}


@frozen(kw_only=True, eq=False, weakref_slot=False)
class RareFacts:
    """Facts about one job. It is immutable: a job with other facts gets another object (`evolve`)."""

    sources: LocalImagesByDigest = NO_SOURCES
    """Its local reference images, until its create was accepted: they may have to be uploaded again."""
    uploads: Mapping[str, UploadedImage] = NO_UPLOADS
    """Digest -> the upload that its body names."""
    uploads_renewed: bool = False
    """Its create was refused once, and the uploads that were not made for it were made again."""
    expected_credits: Decimal | None = None
    """The user's estimate of the price, until the gateway states one."""
    retry_failure_kinds: frozenset[str] = frozenset()
    """If the job is FAILED in the ledger, it is bought again."""
    released_if_unsent: bool = False
    """Other workers may buy it: when its last caller leaves before it is sent, it is released, not withdrawn."""
    withdraw_requested: bool = False
    """It is withdrawn if its current step leaves it PENDING."""
    spends_retry_budget: bool = False
    """Its last create had no usable answer: a repeat is extra load on a gateway that may be down."""
    returned_by_history: bool = False
    """The history has shown that its creates were lost before the gateway had them, and it is sent again."""
    task_id_of_callback: str | None = None
    """The task id in a callback, while the create has no answer."""
    first_imageless_at: float = math.inf
    """When a poll first found it ended without an image."""
    late_answer: LateAnswer | None = None
    """The outcome of its create, which could not be written because the job went to another owner."""
    owner_buried: bool = False
    """Its owner was buried while its current step ran: then the ledger is read before it goes on."""
    state_queues: tuple[deque[JobState], ...] = ()
    """The changes that iterators over the job's updates have not yielded yet."""

    def without_images(self) -> "RareFacts":
        """Return the facts without local reference images and their uploads."""
        if not (self.sources or self.uploads or self.uploads_renewed):
            return self
        return evolve(self, sources=NO_SOURCES, uploads=NO_UPLOADS, uploads_renewed=False)


NO_RARE_FACTS = RareFacts()
