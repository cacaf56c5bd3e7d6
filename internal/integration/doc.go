// Package integration holds no code of its own, only tests that run the built daemon,
// with the race detector in it, beside the real programs it works with: workers of
// gunicorn, uWSGI and Celery that write with prometheus_client, and readers that parse
// what is served (the client's strict OpenMetrics parser, promtool, Prometheus itself).
//
// The yardstick is the client's own multiprocess collector, run on the same directory
// while nobody writes to it: every family, type, help, series and value must
// agree. Where the daemon decides otherwise on purpose, the test says so beside the
// comparison:
//
//   - The collector counts live gauges of dead processes until the application removes
//     their files with mark_process_dead. The daemon finds deaths out by itself, so the
//     collector is shown the directory without those files.
//   - A gauge in mode mostrecent that was never set is not served.
//   - prometheus_client 0.16 spells a bound of 1e10 and more "1e+010", later versions
//     "1e+10"; the daemon spells it as the later ones do.
//   - With NaN among the values of a gauge in mode min or max, the collector's answer
//     depends on the order in which the files are listed, so there is nothing to agree with.
//
// The daemon archives the files of dead processes, and removes them. Where that would leave
// the collector nothing to read, every file is given a second name outside the directory
// as soon as it appears, and the collector reads those: the yardstick for an archive is
// the very run that it has archived. The same comparisons are made beside a daemon that
// leaves the files alone.
//
// A test that needs a program which is not installed is skipped, with the command that
// installs it; where the environment says CI=true it fails. Processes listen on
// loopback or on Unix sockets only.
//
// The tests in the files chaos_*_linux_test.go try to break the archive: forced pid reuse,
// daemons killed at random, full and read-only disks, damage, other pid namespaces. They
// print their seed. Here they run for seconds; make soak runs the chaos for an hour, and
// then the long forms of the tests of processes and outputs.
package integration
