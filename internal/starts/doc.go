// Package starts knows since when series count, so that what a new series has counted before
// anybody looked is not lost to rate(): the start goes out beside the value as created timestamp
// in protobuf, as _created in OpenMetrics, and as start time in remote write 2.0 and OTLP.
//
// Its invariant: a series that an earlier view may have had, under this name or another one, has
// no start after that view. So no receiver takes old counts for new ones.
package starts
