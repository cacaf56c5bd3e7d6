"""A WSGI application that serves /metrics by itself, from the directory that all its workers write
to, as most applications with prometheus_client do. With an argument it is not that application but
processes that end all the time and have the same ID one after the other.

The amounts are multiples of 1/8, so that sums are exact in whatever order they are added.
"""
import os
import signal
import struct
import sys
import traceback

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector



def define():
    global HITS, SECONDS, BYTES, MOST, LEVEL
    HITS = Counter("inapp_hits", "Requests answered.", ["kind"])
    SECONDS = Histogram("inapp_seconds", "Time.", buckets=[1, 2.5, 5])
    BYTES = Summary("inapp_bytes", "Bytes.")
    MOST = Gauge("inapp_most", "Most.", multiprocess_mode="max")
    LEVEL = Gauge("inapp_level", "Level.", multiprocess_mode="livesum")


def count(n, kind):
    HITS.labels(kind).inc()
    SECONDS.observe(n % 64 / 8)
    BYTES.observe(n % 4096)
    MOST.set(n)
    LEVEL.set(1)


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/metrics":
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        try:
            body = generate_latest(registry)
        except struct.error:
            # A process has made a file and not given it a size yet: the collector's own trouble.
            start_response("503 Service Unavailable", [("Content-Length", "0")])
            return [b""]
        except Exception:
            body = traceback.format_exc().encode()
            start_response("500 Internal Server Error", [("Content-Length", str(len(body)))])
            return [body]
    else:
        if path != "/ready":
            count(int(path[1:]), "request")
        body = b"ok"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def again(most):
    """Forks processes that count one each, every other of which is killed, until told to end."""
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    n = 0
    while n < most and not ended:
        n += 1
        pid = os.fork()
        if pid == 0:
            values.ValueClass = values.MultiProcessValue(lambda: "again")
            define()
            count(n, "again")
            if n % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(0)
        os.waitpid(pid, 0)
    print("counted", n, flush=True)


if __name__ == "__main__":
    again(int(sys.argv[2]))
else:
    define()
