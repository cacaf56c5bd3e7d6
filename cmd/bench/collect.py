import sys
import time

from prometheus_client import CollectorRegistry, generate_latest, mmap_dict
from prometheus_client.multiprocess import MultiProcessCollector

try:
    from importlib.metadata import version
    number = version('prometheus_client')
except Exception:
    number = 'unknown'
print(number, 16 if hasattr(mmap_dict, '_unpack_two_doubles') else 8, flush=True)


def peak_bytes():
    # Not getrusage: what it tells on Linux includes the process that this one was forked from.
    try:
        with open('/proc/self/status') as f:
            for line in f:
                if line.startswith('VmHWM:'):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return float('nan')


for _ in sys.stdin:
    start = time.perf_counter()
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    body = generate_latest(registry)
    seconds = time.perf_counter() - start
    peak = peak_bytes()
    samples = sum(1 for line in body.splitlines() if not line.startswith(b'#'))
    print(seconds, samples, peak, flush=True)
