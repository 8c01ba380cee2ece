"""Keep the polls for images that are under way, one for each task."""

from nanobanana_async.engine.dispatcher import Dispatcher
from nanobanana_async.engine.image_poll import ImagePoll
from nanobanana_async.engine.poller import Poller
from nanobanana_async.engine.timers import Timers
from nanobanana_async.errors import NanoBananaError


class ImagePolls:
    """Starts polls for images, repeats them, and ends them."""

    def __init__(self, poller: Poller, dispatcher: Dispatcher, timers: Timers) -> None:
        self._poller = poller
        self._dispatcher = dispatcher
        self._timers = timers
        self._under_way: dict[str, ImagePoll] = {}
        """By task id."""

    def start(self, task_id: str, now: float) -> ImagePoll:
        """Queue a poll for the images of a task, unless one is under way; return it."""
        poll = self._under_way.get(task_id)
        if poll is None:
            poll = self._under_way[task_id] = ImagePoll(task_id, now)
            self._dispatcher.put_image_poll(poll)
        return poll

    async def poll_once(self, poll: ImagePoll) -> None:
        """Make the poll, and schedule its repetition if it was not answered."""
        due = await self._poller.poll_images(poll)
        if due is None:
            del self._under_way[poll.task_id]
        else:
            self._timers.set_due(poll, due)

    def fail(self, poll: ImagePoll, error: NanoBananaError) -> None:
        """End a poll with an error."""
        self._under_way.pop(poll.task_id, None)
        poll.finish(error)

    def fail_all(self, error: NanoBananaError) -> None:
        """End all polls with an error."""
        for poll in list(self._under_way.values()):
            self.fail(poll, error)
