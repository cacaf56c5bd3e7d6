"""A Celery application whose tasks count themselves.

    python3 -m celery -A tasks worker …     serves the queue
    python3 tasks.py send N                 sends N tasks and prints how many the broker took

BROKER_URL names the broker.
"""
import os
import sys

from celery import Celery
from prometheus_client import Counter, Gauge, Histogram

app = Celery("tasks", broker=os.environ["BROKER_URL"])
app.conf.task_ignore_result = True
app.conf.broker_connection_retry_on_startup = True

DONE = Counter("jobs_done_total", "Tasks finished by kind.", ["kind"])
SIZE = Histogram("jobs_size_bytes", "Size of tasks.", buckets=[1, 10, 100])
LAST = Gauge("jobs_last", "Last task.", multiprocess_mode="max")
ACTIVE = Gauge("jobs_active", "Tasks in progress.", multiprocess_mode="livesum")


@app.task(name="tasks.work")
def work(n):
    with ACTIVE.track_inprogress():
        DONE.labels("even" if n % 2 == 0 else "odd").inc()
        SIZE.observe(n % 200)
        LAST.set(n)


if __name__ == "__main__" and sys.argv[1] == "send":
    for i in range(int(sys.argv[2])):
        work.delay(i)
    print(int(sys.argv[2]))
