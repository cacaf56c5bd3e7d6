// Package exposition turns snapshots into the bytes of a scrape: Prometheus text 0.0.4
// and 1.0.0, OpenMetrics text 0.0.1 and 1.0.0, delimited protobuf, and JSON for people
// and scripts. It reads snapshots, keeps what it rendered of their layouts, and knows no
// HTTP beyond the Accept header.
//
// Its one invariant: the shape of what it writes is always valid in the format asked
// for, whatever names and labels the workers made up. What cannot be shown beside the
// rest (a name that is already taken, labels that become equal once they are escaped) is
// left out whole and reported, so that a scraper never has to refuse a whole response.
//
// Values are another matter: they are the workers' and are never judged. OpenMetrics
// says that a counter is not NaN and that a histogram with a negative bound has no sum;
// a worker that does either is served as it is, as its own client would, because
// Prometheus stores such samples and leaving them out would lose them.
//
// Where a format says less than OpenMetrics, the texts follow the Python client and the
// protobuf follows client_golang, so that series keep their identity when a scrape
// moves from one of them to us.
package exposition
