"""Images as tasks: `celery -A celery_tasks worker --pool threads --concurrency 50`, on any number of hosts.

Celery delivers the tasks of a dead worker again. Each finds its job by its key, in the ledger that all workers share.
"""

import os
from contextlib import ExitStack
from threading import Lock

from celery import Celery
from celery.signals import worker_process_shutdown, worker_shutdown

from nanobanana_async import ApiMall, LedgerError, Session, portal

app = Celery("images", broker=os.environ["CELERY_BROKER_URL"], backend=os.environ["CELERY_BROKER_URL"])
app.conf.task_acks_late = True
app.conf.task_reject_on_worker_lost = True
app.conf.worker_prefetch_multiplier = 1
app.conf.broker_transport_options = {"visibility_timeout": 600}
images, opening, closing = None, Lock(), ExitStack()


@app.task(autoretry_for=[LedgerError], max_retries=None, retry_backoff=True)
def image_of(key, prompt, folder):
    global images
    with opening:
        if images is None:  # the first task of a process opens its session: after the fork
            session = Session(ApiMall.from_env(), ledger=os.environ["NANOBANANA_LEDGER"])
            images = closing.enter_context(portal(session))
    result = images.generate(prompt, idempotency_key=key)
    return str(images.save(result, folder)[0])


@worker_process_shutdown.connect
@worker_shutdown.connect
def close_session(**_):
    closing.close()
