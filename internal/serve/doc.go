// Package serve is the HTTP face: it answers scrapes, health checks and browsers. It
// knows no source file and no rule of merging; snapshots come from a Gatherer and their
// bytes from package exposition.
//
//	GET /metrics     the merged metrics, in the format and coding the client asks for
//	GET /            the same, or a page for a client that asks for HTML
//	GET /api/v1/...  answers in JSON, from an API
//	GET /assets/...  what the page is made of
//	GET /-/healthy   200 while the process serves
//	GET /-/ready     200 when a scrape would be complete, else 503
//
// Its one invariant: a response to a scrape is complete and right, or an error status
// with one line that says why. There is no partial scrape: Prometheus would take a
// counter that is missing from it for one that is gone.
package serve
