// Package output sends views to other places: a file for node_exporter, a Pushgateway,
// Graphite, a receiver of Prometheus remote write, a receiver of OTLP. Each output sends
// again and again while the daemon runs, and once more at the end, so that the last values
// of a pool are not lost.
//
// Its invariant: an output costs only itself. Each has a goroutine of its own, and nothing
// waits for it but the end of the daemon, for a bounded time. There is no queue: whenever an
// output is ready to send, it takes the newest view. So a receiver that is down, slow or
// refuses costs neither memory nor a scrape, and gets the newest values when it is back.
//
//	goroutine            started by      ends when                           speaks through
//	one for each output  Run and Apply   Run's context is done, Last begins, telemetry, Status,
//	                                     or the output is no longer wanted   and the log
//
// The way of a view: Source, then a selection (match, pools, labels, relabelling), then a
// sender. A sender keeps what it has encoded of a layout, so a push of values whose series
// are the same encodes only numbers.
package output
