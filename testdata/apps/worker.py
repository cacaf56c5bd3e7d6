"""One worker process of a random program.

    worker.py PROGRAM INDEX

PROGRAM is a JSON file that says what metrics there are and what each worker does with
them; INDEX picks the worker. PROMETHEUS_MULTIPROC_DIR names the directory.

The worker carries out its steps, prints "done" and waits for the end of its standard
input. With "busy" it goes on, after "done", to repeat its last step until it is
killed.
"""
import json
import os
import sys

from prometheus_client import values


def number(text):
    return float(text)


def main():
    with open(sys.argv[1], encoding="utf-8") as f:
        program = json.load(f)
    worker = program["workers"][int(sys.argv[2])]
    if worker.get("id"):
        # Before the first metric: the class is fixed when one is made.
        values.ValueClass = values.MultiProcessValue(lambda: worker["id"])
    from prometheus_client import Counter, Gauge, Histogram, Summary

    metrics = {}
    for m in program["metrics"]:
        name, args = m["name"], (m["help"], m["labels"] or [])
        if m["type"] == "counter":
            metrics[name] = Counter(name, *args)
        elif m["type"] == "summary":
            metrics[name] = Summary(name, *args)
        elif m["type"] == "histogram":
            more = {}
            # A worker may have other buckets than its siblings, as after a change of
            # the code that only some of them have been restarted for.
            buckets = (worker.get("buckets") or {}).get(name) or m.get("buckets")
            if buckets:
                more["buckets"] = [number(b) for b in buckets]
            metrics[name] = Histogram(name, *args, **more)
        else:
            metrics[name] = Gauge(name, *args, multiprocess_mode=m["mode"])

    def step(s):
        metric = metrics[s["metric"]]
        if s.get("labels"):
            metric = metric.labels(*s["labels"])
        if s["op"] == "touch":
            return
        getattr(metric, s["op"])(number(s["value"]))

    for s in worker["steps"]:
        step(s)
    print("done", os.getpid(), flush=True)
    if worker.get("busy"):
        while True:
            step(worker["steps"][-1])
    sys.stdin.read()


main()
