"""Parses expositions with the Python client's own parsers.

Reads a JSON array of [format, text] from standard input, where format is "openmetrics"
(the strict parser) or "text", and writes a JSON array with, for each, either
{"error": why} or {"samples": [[name, {label: value}, float.hex() of the value], ...],
"types": {family: type}}.
"""
import json
import sys

from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics

PARSERS = {
    "openmetrics": openmetrics.text_string_to_metric_families,
    "text": parser.text_string_to_metric_families,
}


def parse(format, text):
    samples, types = [], {}
    try:
        for family in PARSERS[format](text):
            types[family.name] = family.type
            for s in family.samples:
                samples.append([s.name, s.labels, float(s.value).hex()])
    except Exception as e:
        return {"error": "%s: %s" % (type(e).__name__, e)}
    return {"samples": samples, "types": types}


sys.stdin.reconfigure(encoding="utf-8")
json.dump([parse(f, t) for f, t in json.load(sys.stdin)], sys.stdout)
