"""Prints what prometheus_client's own multiprocess collector makes of a directory, as JSON.

    collect.py DIRECTORY [--alive ID ... | --proc WATCHED]

With --alive, the files of live gauges of every other process are left out: that is what
mark_process_dead, which an application calls from a hook when a worker dies,
does to the directory, and what aggregatord must conclude by itself. With --proc instead,
a process is alive when some process of /proc maps one of its files, by the name it has in
WATCHED: DIRECTORY itself, or where the files come from that it has other names of.

A file of 0 bytes is what a worker leaves that was killed before it had written anything.
The collector fails on it, so it is left out.

The output is a list of families {name, type, help, mode, samples}, where a sample
is [name, {label: value}, value]. Values are strings, as JSON has no NaN and no infinities.
"""
import argparse
import glob
import json
import os
import sys

from prometheus_client.multiprocess import MultiProcessCollector


def mapped_files(directory):
    """Returns the names of files in directory that any process on this machine has mapped."""
    found = set()
    prefix = os.path.realpath(directory) + "/"
    for maps in glob.glob("/proc/[0-9]*/maps"):
        try:
            with open(maps, errors="surrogateescape") as lines:
                for line in lines:
                    parts = line.rstrip("\n").split(None, 5)
                    # Only mappings that are shared and writable: the daemon's own
                    # are read-only and prove nothing.
                    if len(parts) == 6 and "w" in parts[1] and parts[5].startswith(prefix):
                        found.add(parts[5][len(prefix):])
        except OSError:
            pass  # The process has gone meanwhile.
    return found


def main():
    args = argparse.ArgumentParser()
    args.add_argument("directory")
    args.add_argument("--alive", nargs="*")
    args.add_argument("--proc", metavar="WATCHED")
    args = args.parse_args()

    files = sorted(glob.glob(os.path.join(args.directory, "*.db")))
    mapped = mapped_files(args.proc) if args.proc else None
    kept = []
    for path in files:
        if os.path.getsize(path) == 0:
            continue
        parts = os.path.basename(path).split("_", 2)
        if parts[0] == "gauge" and parts[1].startswith("live"):
            if args.alive is not None and parts[2][: -len(".db")] not in args.alive:
                continue
            if mapped is not None and os.path.basename(path) not in mapped:
                continue
        kept.append(path)

    families = []
    for metric in MultiProcessCollector.merge(kept):
        families.append({
            "name": metric.name,
            "type": metric.type,
            "help": metric.documentation,
            "mode": getattr(metric, "_multiprocess_mode", ""),
            "samples": [[s.name, s.labels, repr(float(s.value))] for s in metric.samples],
        })
    json.dump(families, sys.stdout)


main()
