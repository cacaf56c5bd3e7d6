"""A family of processes that inherit each other's mappings.

    chaos_family.py

PROMETHEUS_MULTIPROC_DIR names the directory. The master counts 1 and forks, as gunicorn
does with --preload: "heir", which never counts anything and so keeps the master's mapping,
and "worker", which counts 10 in files of its own and forks "child", which keeps the
worker's mapping. Each prints its name and pid. "child" adds 100 through the mapping it
inherited for each SIGUSR1, as no client does, but any process may; it says so.
"""
import os
import signal
import time

from prometheus_client import Counter, Gauge

counter = Counter("family_total", "Counted by the family.")
alive = Gauge("family_alive", "1 for each process that set it.", multiprocess_mode="livesum")


def tell(name):
    os.write(1, ("%s %d\n" % (name, os.getpid())).encode())


def sleep():
    while True:
        time.sleep(60)


def add(signum, frame):
    value = counter._value
    value._file.write_value(value._key, value._file.read_value(value._key) + 100)
    os.write(1, b"added\n")


counter.inc(1)
alive.set(1)
if os.fork() == 0:
    tell("heir")
    sleep()
if os.fork() == 0:
    counter.inc(10)
    alive.set(1)
    if os.fork() == 0:
        signal.signal(signal.SIGUSR1, add)
        tell("child")
        sleep()
    tell("worker")
    sleep()
tell("master")
while True:
    # So that the dead are gone.
    try:
        os.wait()
    except ChildProcessError:
        sleep()
