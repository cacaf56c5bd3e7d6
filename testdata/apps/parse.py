"""Parses an exposition from standard input with a parser of prometheus_client.

    parse.py openmetrics|text < BODY

Prints the families as collect.py does. Anything the parser refuses ends the program
with exit status 1 and the parser's complaint on standard error. The OpenMetrics parser
is the strict one: it refuses a blank line, an uncanonical bound, interleaved series, a missing EOF
and so on.
"""
import io
import json
import sys


def main():
    if sys.argv[1] == "openmetrics":
        from prometheus_client.openmetrics.parser import text_fd_to_metric_families
    else:
        from prometheus_client.parser import text_fd_to_metric_families
    # newline="\n": only a line feed ends a line; Python's default takes more for one.
    body = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", newline="\n")
    families = []
    try:
        for metric in text_fd_to_metric_families(body):
            families.append({
                "name": metric.name,
                "type": metric.type,
                "help": metric.documentation,
                "mode": "",
                "samples": [[s.name, s.labels, repr(float(s.value))] for s in metric.samples],
            })
    except (ValueError, UnicodeDecodeError) as err:
        sys.exit("refused: %s" % err)
    json.dump(families, sys.stdout)


main()
