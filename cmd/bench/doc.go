// Command bench measures the daemon against what the machine can do: it generates
// directories of source files, runs the built daemon on them, and prints how long scrapes
// take beside a floor that knows everything beforehand and beside the Python client's own
// collector, in turns and in one run, so that the ratios mean something even where the
// times do not.
//
//	go run ./cmd/bench -h
//
// The floor is the work nobody can avoid: load every value of every living worker once,
// format the merged values behind prefixes that are ready, and send as many bytes over
// loopback HTTP. It knows where each value is and which line it belongs to, looks for no
// changes, asks for no signs of life, and sums without care for rounding.
//
// Its invariant: what is compared is the same. Before anything is timed, and again at the
// end, the daemon's response is compared with the floor's, line by line.
package main
