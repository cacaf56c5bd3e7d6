"""A pool of short-lived workers that keep books, for the chaos tests.

    chaos_pool.py LEDGER --seed N [--live N] [--ids pid|fixed] [--preload] [--reuse] [--mark] [--time-opens]

PROMETHEUS_MULTIPROC_DIR names the directory of the source files.

The master forks workers, without exec, and kills some of them; each lives for some ten
milliseconds and does a few operations on metrics of all types. The books are a file that
all of them map, LEDGER, of float64:

    64 numbers      0: odd while the master moves numbers, 1: workers so far, 2: of them
                    killed, 3: of them with the worker ID of one that had just died,
                    4: about how many files were opened, with --time-opens
    2 rows          started and acknowledged, of the workers that are gone
    2 rows a slot   the same of a living worker

A row has one number for each column, printed at the start: what it counts, and whether
columns of several workers are added or the greatest counts. A worker writes to "started"
before an operation and to "acknowledged" after it, so that wherever it is killed, what the
operation did is between the two. All amounts are multiples of 1/8: sums are exact.

With --reuse, which takes a pid namespace of its own and root, new workers mostly get the
pid of one that died a moment ago. With --ids fixed there are no pids in the names of
files but 1 to N, each used again as soon as its worker is dead; and some workers open and
close files all the time, of the IDs 3a and 3b say, as workers that live for some
microseconds would, so that a file that nobody has open any more is opened again at any
moment of its being archived.

With --mark the master calls mark_process_dead for each worker as soon as it is dead, as
hooks do. With --time-opens each open of a source file that waits for over 100 ms is told,
in a line "slow open", with its begin and end on the monotonic clock.

Where thousands of files wait for the daemon, the master waits too: else they would never
be fewer on a slow machine, and all that a daemon does that is killed every few seconds is
to begin.

Standard input: the line "pause" makes the master kill what lives and say "paused"; then
"wipe N" empties the directory in one of the ways of start scripts, and the pool goes on.
The line "stop" makes it kill what lives and print, for each worker ID, which values the
gauge of mode all may have; the end of it ends the master. What goes wrong in any of that is
a line "worker failed".
"""
import argparse
import json
import mmap
import os
import pathlib
import random
import resource
import select
import shutil
import signal
import sys
import time

from prometheus_client import Counter, Gauge, Histogram, Summary, mmap_dict, multiprocess, values
from prometheus_client.mmap_dict import MmapedDict, mmap_key

HEADER = 64
SLOTS = 16
CROWD = 4000
BOUNDS = [0.5, 1.0, 2.0, float("inf")]
ROUTES = ["a", "b"]
KINDS = ["read", "write", "drop"]


def spell(bound):
    return "+Inf" if bound == float("inf") else "%g" % bound


# As start scripts empty a directory, the last one without what is hidden.
WIPES = [
    lambda d: [os.remove(os.path.join(d, name)) for name in os.listdir(d)],
    lambda d: (shutil.rmtree(d), os.makedirs(d)),
    lambda d: [p.unlink() for p in pathlib.Path(d).iterdir()],
    lambda d: [p.unlink() for p in pathlib.Path(d).glob("*.db")],
]


def time_opens(books):
    """Watch how long the client waits in open."""

    def timed(name, mode):
        waits, begin = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw, time.monotonic()
        f = open(name, mode)
        end = time.monotonic()
        books[4] += 1
        # Who waits gives up the processor by itself; who was just not given one does not.
        if end - begin > 0.1 and resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw > waits:
            os.write(1, b"slow open %.4f %.4f\n" % (begin, end))
        return f

    mmap_dict.open = timed


# What a row holds: family, sample, labels (None: of all series together), how to combine.
COLUMNS = []


def column(family, sample, labels, op="sum"):
    COLUMNS.append({"family": family, "sample": sample, "labels": labels, "op": op})
    return len(COLUMNS) - 1


OPS = {k: column("chaos_ops", "chaos_ops_total", {"kind": k}) for k in KINDS}
BYTES = column("chaos_bytes", "chaos_bytes_total", {})
WIDE = column("chaos_wide", "chaos_wide_total", None)
H_SUM = {r: column("chaos_seconds", "chaos_seconds_sum", {"route": r}) for r in ROUTES}
H_COUNT = {r: column("chaos_seconds", "chaos_seconds_count", {"route": r}) for r in ROUTES}
H_BUCKET = {(r, b): column("chaos_seconds", "chaos_seconds_bucket", {"route": r, "le": spell(b)})
            for r in ROUTES for b in BOUNDS}
S_SUM = column("chaos_size", "chaos_size_sum", {})
S_COUNT = column("chaos_size", "chaos_size_count", {})
G_SUM = column("chaos_level_sum", "chaos_level_sum", {})
G_MAX = column("chaos_level_max", "chaos_level_max", {}, "max")
# Not compared with a series of its own: there is one for each worker.
G_ALL = column("", "", None, "max")
Q = len(COLUMNS)


class Metrics:
    def __init__(self):
        self.ops = Counter("chaos_ops", "Operations.", ["kind"])
        self.bytes = Counter("chaos_bytes", "Bytes.")
        self.wide = Counter("chaos_wide", "Of many series.", ["n"])
        self.seconds = Histogram("chaos_seconds", "Time.", ["route"], buckets=BOUNDS)
        self.size = Summary("chaos_size", "Size.")
        self.level_sum = Gauge("chaos_level_sum", "Only ever raised.", multiprocess_mode="sum")
        self.level_max = Gauge("chaos_level_max", "Set to ever greater values.", multiprocess_mode="max")
        self.alive = Gauge("chaos_alive", "1 for each worker.", multiprocess_mode="livesum")
        self.serial = Gauge("chaos_serial", "Number of the worker.", multiprocess_mode="all")


class Worker:
    """What a child does with its life."""

    def __init__(self, books, slot, serial, metrics, rnd, identity):
        base = HEADER + (2 + 2 * slot) * Q
        self.books, self.started, self.acked = books, base, base + Q
        self.serial, self.m, self.rnd = serial, metrics, rnd
        self.identity = identity  # "" if that is the pid

    def do(self, operation, *changes):
        for col, amount in changes:
            self.books[self.started + col] += amount
        operation()
        for col, amount in changes:
            self.books[self.acked + col] += amount

    def set(self, col, value, gauge):
        self.books[self.started + col] = value
        gauge.set(value)
        self.books[self.acked + col] = value

    def count(self):
        kind, n = self.rnd.choice(KINDS), self.rnd.randrange(1, 9)
        child = self.m.ops.labels(kind)
        self.do(lambda: child.inc(n), (OPS[kind], n))

    def transfer(self):
        n = self.rnd.randrange(1, 64) / 8
        self.do(lambda: self.m.bytes.inc(n), (BYTES, n))

    def wide(self):
        # More series than the first size of the file holds, so that it grows.
        for n in range(self.rnd.randrange(400, 900)):
            child = self.m.wide.labels(str(n))
            self.do(lambda: child.inc(), (WIDE, 1))

    def observe(self):
        route, x = self.rnd.choice(ROUTES), self.rnd.randrange(0, 24) / 8
        child = self.m.seconds.labels(route)
        self.do(lambda: child.observe(x), (H_SUM[route], x), (H_COUNT[route], 1),
                *((H_BUCKET[route, b], 1) for b in BOUNDS if x <= b))

    def measure(self):
        x = self.rnd.randrange(0, 80) / 8
        self.do(lambda: self.m.size.observe(x), (S_SUM, x), (S_COUNT, 1))

    def levels(self):
        n = self.rnd.randrange(1, 16) / 8
        self.do(lambda: self.m.level_sum.inc(n), (G_SUM, n))
        # Greater than any value set before, by whomever: a file that is used again by the
        # next worker has its value overwritten, and the greatest must not fall.
        self.set(G_MAX, float(time.monotonic_ns() // 1024), self.m.level_max)

    def hammer(self):
        key = mmap_key("chaos_bytes", "chaos_bytes_total", [], [], "Bytes.")
        for _ in range(self.rnd.randrange(100, 1000)):
            name = "counter_%s%s.db" % (self.identity, self.rnd.choice("abc"))
            self.books[self.started + BYTES] += 1
            f = MmapedDict(os.path.join(os.environ["PROMETHEUS_MULTIPROC_DIR"], name))
            f.write_value(key, f.read_value(key) + 1)
            self.books[self.acked + BYTES] += 1
            f.close()
            if self.rnd.random() < 0.01:
                time.sleep(0.001)

    def live(self):
        rnd = self.rnd
        self.m.alive.set(1)
        self.set(G_ALL, float(self.serial), self.m.serial)
        acts = [self.count, self.count, self.transfer, self.observe, self.observe, self.measure, self.levels]
        if rnd.random() < 0.02:
            self.wide()
        for _ in range(rnd.randrange(1, 12)):
            rnd.choice(acts)()
            if rnd.random() < 0.5:
                time.sleep(rnd.random() * 0.006)
        if self.identity and rnd.random() < 0.4:
            self.hammer()
        if rnd.random() < 0.05 and os.fork() == 0:
            # A child that inherits the mappings and writes nothing.
            time.sleep(rnd.random() * 0.2)
            os._exit(0)
        end = rnd.random()
        if end < 0.3:
            os.kill(os.getpid(), signal.SIGKILL)
        while end > 0.8:
            # Until the master does it, wherever that may be.
            rnd.choice(acts)()
            if rnd.random() < 0.3:
                time.sleep(0.002)


class Master:
    def __init__(self, args):
        self.args, self.rnd = args, random.Random(args.seed)
        rows = 2 + 2 * SLOTS
        with open(args.ledger, "w+b") as f:
            f.truncate(8 * (HEADER + rows * Q))
            self.books = memoryview(mmap.mmap(f.fileno(), 0)).cast("d")
        if args.time_opens:
            time_opens(self.books)
        self.identity = [""]
        if args.ids == "fixed":
            values.ValueClass = values.MultiProcessValue(lambda: self.identity[0])
            self.identity[0] = "master"
        self.metrics = Metrics() if args.preload else None
        if args.preload:
            self.metrics.ops.labels("read").inc(0)  # so that there are files to inherit
        self.free = list(range(SLOTS))
        self.ids = [str(n + 1) for n in range(args.live)]
        self.living = {}  # pid: (slot, worker ID, when to kill it)
        self.dead = []  # the pids of those that died last
        self.last = {}  # worker ID: the values that the gauge in mode all may have
        self.serial = 0

    def fork(self):
        pid = None
        if self.args.reuse and self.dead and self.rnd.random() < 0.8:
            pid = self.dead.pop(-1 if self.rnd.random() < 0.7 else self.rnd.randrange(len(self.dead)))
            with open("/proc/sys/kernel/ns_last_pid", "w") as f:
                f.write(str(pid - 1))
        self.serial += 1
        slot, seed = self.free.pop(), self.rnd.random()
        identity = self.ids.pop(0 if self.rnd.random() < 0.5 else -1) if self.args.ids == "fixed" else ""
        child = os.fork()
        if child == 0:
            try:
                self.identity[0] = identity
                rnd = random.Random(seed)
                Worker(self.books, slot, self.serial, self.metrics or Metrics(), rnd, identity).live()
            except BaseException as err:
                # Written at once: nobody flushes behind a child that ends like this.
                os.write(2, ("worker failed: %r\n" % err).encode())
                os._exit(1)
            os._exit(0)
        self.books[1] += 1
        if child == pid or identity and self.serial > len(self.ids) + len(self.living):
            self.books[3] += 1
        # Some are killed before they have begun, some while they open their files.
        due = time.monotonic() + self.rnd.choice([0.004, 0.02, 0.1, 0.1]) * self.rnd.random()
        self.living[child] = (slot, identity or str(child), due)

    def reap(self, flags=os.WNOHANG):
        while True:
            try:
                pid, status = os.waitpid(-1, flags)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self.living:
                self.bury(pid, status)

    def bury(self, pid, status):
        slot, identity, _ = self.living.pop(pid)
        books, base = self.books, HEADER + (2 + 2 * slot) * Q
        if os.WIFSIGNALED(status):
            books[2] += 1
        elif os.WEXITSTATUS(status):
            print("worker failed", flush=True)
        if self.args.mark:
            self.attempt("mark_process_dead", lambda: multiprocess.mark_process_dead(identity))
        if books[base + Q + G_ALL]:
            self.last[identity] = {books[base + Q + G_ALL]}
        else:
            # It may have set the gauge, or made it and left it at 0, or not have come so far.
            self.last.setdefault(identity, set()).update([0.0, books[base + G_ALL]])
        books[0] += 1
        for row in 0, 1:
            for i, col in enumerate(COLUMNS):
                gone, own = HEADER + row * Q + i, base + row * Q + i
                if col["op"] == "sum":
                    books[gone] += books[own]
                else:
                    books[gone] = max(books[gone], books[own])
                books[own] = 0
        books[0] += 1
        self.free.append(slot)
        if self.args.ids == "fixed":
            self.ids.insert(0, identity)
        self.dead.append(pid)
        del self.dead[:-12]

    def attempt(self, what, call):
        try:
            call()
        except Exception as err:
            print("worker failed: %s: %r" % (what, err), flush=True)

    def kill(self):
        for pid in self.living:
            os.kill(pid, signal.SIGKILL)
        self.reap(0)  # the silent children, too, if they are ours

    def run(self):
        print("columns " + json.dumps(COLUMNS), flush=True)
        while self.play():
            self.kill()
            print("paused", flush=True)
            wipe = WIPES[int(sys.stdin.readline().split()[1]) % len(WIPES)]
            self.attempt("wipe", lambda: wipe(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
            print("wiped", flush=True)
        self.kill()
        print("stopped " + json.dumps({k: sorted(v) for k, v in self.last.items()}), flush=True)
        sys.stdin.read()

    def play(self):
        """Let workers come and go until told otherwise. True is for a pause."""
        want, change = self.args.live, 0.0
        crowded, count = False, 0.0
        while not select.select([sys.stdin], [], [], 0.0005)[0]:
            now = time.monotonic()
            if now > change:
                want, change = self.rnd.randrange(self.args.live // 2, self.args.live + 1), now + 0.2
            self.reap()
            for pid, (_, _, due) in self.living.items():
                if now > due and self.rnd.random() < 0.5:
                    os.kill(pid, signal.SIGKILL)
            if now > count:
                crowded, count = len(os.listdir(os.environ["PROMETHEUS_MULTIPROC_DIR"])) > CROWD, now + 0.5
            while len(self.living) < want and not crowded:
                self.fork()
        return sys.stdin.readline().startswith("pause")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("ledger")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--live", type=int, default=6)
    parser.add_argument("--ids", choices=["pid", "fixed"], default="pid")
    parser.add_argument("--preload", action="store_true")
    parser.add_argument("--reuse", action="store_true")
    parser.add_argument("--mark", action="store_true")
    parser.add_argument("--time-opens", action="store_true")
    Master(parser.parse_args()).run()


main()
