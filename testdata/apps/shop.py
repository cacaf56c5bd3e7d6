"""A web application for gunicorn and uWSGI, instrumented with prometheus_client.

Every kind of metric the client has in multiprocess mode is here: counters with
and without labels, histograms with the default and with custom buckets, a
summary, and one gauge in every mode. The amounts are multiples of 1/8, so that sums
are exact in whatever order they are added.
"""
import os

from flask import Flask, jsonify, request
from prometheus_client import Counter, Gauge, Histogram, Summary

app = Flask(__name__)

REQUESTS = Counter("shop_requests_total", "Requests answered.")
BY_ITEM = Counter("shop_orders", "Orders by item and size.", ["item", "size"])
LATENCY = Histogram("shop_latency_seconds", "Time to answer.", ["item"])
AMOUNT = Histogram(
    "shop_amount_euros",
    'Amounts; help with "quotes", a \\ and a\nsecond line.',
    buckets=[1, 2.5, 5, 10, 250, 1e6],
)
BYTES = Summary("shop_bytes", "Bytes by item.", ["item"])
# Modes differ between versions of the client: one gauge for each that this one has.
MODES = sorted(Gauge._MULTIPROC_MODES)
GAUGES = {
    mode: Gauge("shop_level_" + mode, "Level in mode " + mode + ".", ["item"], multiprocess_mode=mode)
    for mode in MODES
}
BUSY = Gauge("shop_busy", "Requests being answered.", multiprocess_mode="livesum")
Counter("shop_untouched", "Declared and never touched.")
Counter("shop_failures_total", "Failures by kind; declared, no child ever made.", ["kind"])

ITEMS = ["tea", "crème brûlée", 'a "quoted" one', "back\\slash", "two\nlines", ""]


@app.route("/order/<int:n>")
def order(n):
    with BUSY.track_inprogress():
        item = ITEMS[n % len(ITEMS)]
        BY_ITEM.labels(item=item, size=str(n % 3)).inc(1 + n % 4 / 8)
        LATENCY.labels(item).observe(n % 64 / 8)
        AMOUNT.observe(n % 1024 / 2)
        BYTES.labels(item).observe(n % 4096)
        for i, mode in enumerate(MODES):
            GAUGES[mode].labels(item).set((n * (i + 3)) % 97 / 8)
        REQUESTS.inc()
        return jsonify(pid=os.getpid())


@app.route("/pid")
def pid():
    """Answers without touching a metric: for finding out whether anybody serves."""
    return jsonify(pid=os.getpid())
