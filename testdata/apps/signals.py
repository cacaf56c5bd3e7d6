"""Counts the signals it gets, and says so, until it has got SIGTERM.

    signals.py [--orphans]

Each is printed as "got NAME", and counted in the metric signals_total. With --orphans it
first leaves some processes behind, which end at once, and prints how many of them are
zombies a little later: none, if PID 1 reaps them.
"""
import os
import signal
import sys
import time

from prometheus_client import Counter

SIGNALS = Counter("signals_total", "Signals received.", ["name"])
GOT = []


def say(line):
    # At once: the daemon may write to the same pipe, and print writes the line feed by itself.
    os.write(1, (line + "\n").encode())


def orphans(n):
    for _ in range(n):
        child = os.fork()
        if child == 0:
            if os.fork() == 0:
                time.sleep(0.05)  # its parent is gone by then
            os._exit(0)
        os.waitpid(child, 0)
    time.sleep(0.5)
    zombies = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/stat" % pid) as f:
                zombies += ") Z " in f.read()
        except OSError:
            pass  # it has ended
    say("zombies %d" % zombies)


def main():
    for name in "HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "WINCH", "TTIN", "TTOU", "RT":
        number = signal.SIGRTMIN + 1 if name == "RT" else getattr(signal, "SIG" + name)
        signal.signal(number, lambda n, _, name=name: GOT.append(name))
    if "--orphans" in sys.argv:
        orphans(20)
    say("waiting %d %s" % (os.getpid(), os.environ["PROMETHEUS_MULTIPROC_DIR"]))
    while "TERM" not in GOT:
        time.sleep(0.05)
        while GOT:
            name = GOT.pop(0)
            SIGNALS.labels(name).inc()
            say("got " + name)
            if name == "TERM":
                return 3
    return 3


sys.exit(main())
