"""A Flask application that counts its requests. There is no /metrics in it, and no hook."""
from flask import Flask
from prometheus_client import Counter, Gauge, Histogram

app = Flask(__name__)

REQUESTS = Counter("example_requests_total", "Requests answered.", ["path"])
LATENCY = Histogram("example_latency_seconds", "Time to answer.")
BUSY = Gauge("example_busy", "Requests being answered.", multiprocess_mode="livesum")


@app.route("/")
def index():
    with BUSY.track_inprogress(), LATENCY.time():
        REQUESTS.labels("/").inc()
        return "hello\n"
