"""A batch job: 4 processes that do 100 items together and end at once, with no hook and no wait."""

import multiprocessing
import sys

from prometheus_client import Counter, Gauge, Histogram, Summary

ITEMS = Counter("batch_items", "Items done, by \"kind\".", ["kind"])
SECONDS = Histogram("batch_item_seconds", "Time an item takes.", buckets=[0.1, 1, 2.5])
BYTES = Summary("batch_item_bytes", "Size of an item.")
LAST = Gauge("batch_last_item", "Number of the last item.", multiprocess_mode="max")
ODD = Gauge("batch_odd", "Special values.", ["value"], multiprocess_mode="max")


def work(number):
    for n in range(25):
        ITEMS.labels("a/b é").inc()
        SECONDS.observe(0.5 if n % 5 else 3)
        BYTES.observe(100)
        LAST.set(25 * number + n)
    for value in ("nan", "inf", "-inf", "0.1", "5e-324"):
        ODD.labels(value).set(float(value))


if __name__ == "__main__":
    workers = [multiprocessing.Process(target=work, args=(n,)) for n in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    sys.exit(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
