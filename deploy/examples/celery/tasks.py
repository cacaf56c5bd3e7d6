"""A Celery application that counts its tasks."""
import os

from celery import Celery
from prometheus_client import Counter

app = Celery("tasks", broker=os.environ.get("BROKER_URL", "redis://127.0.0.1:6379"))
app.conf.task_ignore_result = True

DONE = Counter("example_tasks_total", "Tasks done.")


@app.task(name="tasks.work")
def work():
    DONE.inc()
