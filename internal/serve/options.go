package serve

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"time"

	"go.uber.org/zap"

	"aggregatord/internal/exposition"
	"aggregatord/internal/view"
)

// A Gatherer makes the snapshots of one scrape.
type Gatherer interface {
	// Gather returns what is to be served now. In name collisions the last snapshot wins,
	// see exposition.Encoder. The caller releases the snapshots. It should return early
	// when ctx is done, with an error that wraps ctx.Err(); nothing else ends it early, and
	// a scrape that it keeps waiting holds one of the places in MaxScrapesInFlight. The error
	// wraps ErrNoPool if the request names a pool that there is not.
	Gather(ctx context.Context, r Request) ([]*view.Snapshot, error)
}

// A Request says what a scrape is to be served. The zero value means everything: all pools,
// and the daemon's own metrics where they are served with the rest.
type Request struct {
	// Pools are the names of the pools, sorted, none twice. Empty: all. A scrape of some pools
	// has none of the daemon's own metrics: whoever scrapes each pool by itself would get them
	// once for each.
	Pools []string
	// BarePools asks for series without the label pool: the path has said which pool it is.
	BarePools bool
	// SelfOnly asks for all of the daemon's own metrics and nothing else.
	SelfOnly bool
	// Starts asks for the Starts of the snapshots: a format that is accepted can carry them.
	Starts bool
}

// ErrNoPool is wrapped by an error that names a pool that there is not. The scrape gets status
// 404 and the error's text.
var ErrNoPool = errors.New("no such pool")

// ErrPoolNotReady is wrapped by an error that names a pool that was not read wholly yet. The
// scrape gets status 503 and the error's text.
var ErrPoolNotReady = errors.New("pool is not ready")

// Options of a Server. The zero value of every field is usable.
type Options struct {
	// Gatherer provides what is served. Without one, scrapes are empty.
	Gatherer Gatherer
	// Encoder turns snapshots into bytes. Give one to hear its reports; by default the
	// server has its own.
	Encoder *exposition.Encoder
	// TelemetryPath is where the metrics are, beside /. Default: /metrics.
	TelemetryPath string
	// Ready tells whether all there is has been read. Until then, scrapes get status 503:
	// totals over a part of the files would look like counters that fell. It is asked at
	// each request and must be cheap. Default: always.
	Ready func() bool
	// PoolReady tells why one pool cannot be scraped; the error wraps ErrNoPool if there is no such
	// pool. Default: each can.
	PoolReady func(pool string) error
	// Targets lists the pools for Prometheus' service discovery at /-/sd. Default: nothing is there.
	Targets func() []Target
	// ExternalURL is where the targets are told to be. Default: the host that the request names.
	ExternalURL *url.URL
	// AnyPath serves the metrics at every path that nothing else is at, for scrapers that were
	// set up for an exporter that does so.
	AnyPath bool
	// NoSelfMetrics says that there are no metrics of the daemon's own at /-/metrics.
	NoSelfMetrics bool
	// AllowedHosts are the host names, without a port, by which the API may be asked for beside
	// addresses and localhost; "*" is any. Without that check a page of somebody else that has
	// its name resolved to our address could have a browser read the API. Unix sockets are not
	// checked. Default: none.
	AllowedHosts []string
	// API answers what is asked below /api/v1/. Default: nothing is there.
	API API
	// Change does what is posted to the paths of the API at which something is changed, as API.Answer answers. Default: such requests get
	// status 403.
	Change func(ctx context.Context, path string, form url.Values) (code int, body []byte)
	// OnQuestion is called after each request to the API with the status that was sent, 0 if
	// the client had gone. Default: nothing.
	OnQuestion func(code int)
	// Logger gets what the operator should know: a line when scrapes begin to fail and
	// when they are well again, none for each scrape. Default: none.
	Logger *zap.Logger
	// Observe is called after each request for metrics, by the goroutine that served it.
	Observe func(ScrapeInfo)
	// MaxScrapesInFlight is how many responses that select pools or names may be in the making
	// at once; more get status 503 at once. Scrapes of everything share their responses and are
	// never refused. Default: 40. Negative: no bound.
	MaxScrapesInFlight int
	// MaxConnections is how many clients may be connected. One more takes the place of another:
	// of one that is idle or has not said anything, else of one of the address that has most.
	// Default: 512, or less if the process may open fewer than 8192 files. Negative: no bound.
	MaxConnections int
	// OnConnectionClosed is called for each connection that was closed to bound what clients
	// may take. Default: nothing.
	OnConnectionClosed func(Closed)
	// MaxSendingBytes is how many bytes of responses may be on their way; if there are more, and
	// more than four times the newest response, those who receive the oldest lose their
	// connections. Default: 64 MiB.
	MaxSendingBytes int
	// ShutdownTimeout is how long scrapes in flight may go on once Run's context is done;
	// then their connections are closed. Default: 10 s.
	ShutdownTimeout time.Duration
	// ReadHeaderTimeout is how long a client may take to send a request's header, so that
	// idle connections cannot pile up. Default: 10 s, or ReadTimeout if that is shorter.
	ReadHeaderTimeout time.Duration
	// ReadTimeout is how long a client may take to send a whole request. Default: 1 minute.
	// Negative: no limit.
	ReadTimeout time.Duration
	// WriteTimeout is how long a response may take from its first byte to its last; a scraper
	// that reads no faster than that loses its connection, and so does one that takes less than
	// 64 KiB in 10 seconds. Default: 1 minute. Negative: no limit.
	WriteTimeout time.Duration
	// IdleTimeout is how long a connection is kept for the next request. Shorter than the
	// scrape interval, every scrape connects anew. Default: 5 minutes. Negative: no limit.
	IdleTimeout time.Duration
	// WebConfigFile names a file in the format of exporter-toolkit: TLS, client certificates,
	// users with passwords, response headers and a rate limit, for every listener and every
	// path. The toolkit reads it again for each request and each connection, so certificates
	// and passwords may be changed at any time. See CheckWebConfig. Default: none of these.
	WebConfigFile string
	// ExplainWebConfig says in better words why WebConfigFile cannot be used; cause is what the
	// toolkit says. It reads the file itself, and returns cause if it knows nothing better. Default:
	// what the toolkit says.
	ExplainWebConfig func(path string, cause error) error
	// OnRefused is called for each request that what WebConfigFile says kept from being
	// served. Default: nothing.
	OnRefused func(Refusal)
	// Reload reads the configuration again, for POST /-/reload; what it returns is the
	// answer. It may be called several times at once. Default: such requests get status 403.
	Reload func() error
	// MaxHeaderBytes bounds a request's header, the values of name[] included. Default: 64 KiB.
	MaxHeaderBytes int
}

func (o *Options) fill() {
	if o.Encoder == nil {
		o.Encoder = new(exposition.Encoder)
	}
	if o.TelemetryPath == "" {
		o.TelemetryPath = "/metrics"
	}
	if !strings.HasPrefix(o.TelemetryPath, "/") {
		o.TelemetryPath = "/" + o.TelemetryPath
	}
	if o.Ready == nil {
		o.Ready = func() bool { return true }
	}
	if o.MaxSendingBytes == 0 {
		o.MaxSendingBytes = defaultOutgoing
	}
	if o.MaxConnections == 0 {
		o.MaxConnections = DefaultMaxConnections()
	}
	if o.OnConnectionClosed == nil {
		o.OnConnectionClosed = func(Closed) {}
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Observe == nil {
		o.Observe = func(ScrapeInfo) {}
	}
	if o.ExplainWebConfig == nil {
		o.ExplainWebConfig = func(_ string, cause error) error { return cause }
	}
	if o.OnQuestion == nil {
		o.OnQuestion = func(int) {}
	}
	if o.MaxScrapesInFlight == 0 {
		o.MaxScrapesInFlight = 40
	}
	if o.ShutdownTimeout == 0 {
		o.ShutdownTimeout = 10 * time.Second
	}
	if o.OnRefused == nil {
		o.OnRefused = func(Refusal) {}
	}
	if o.ReadTimeout == 0 {
		o.ReadTimeout = time.Minute
	}
	if o.ReadHeaderTimeout == 0 {
		o.ReadHeaderTimeout = 10 * time.Second
		if o.ReadTimeout > 0 {
			o.ReadHeaderTimeout = min(o.ReadHeaderTimeout, o.ReadTimeout)
		}
	}
	if o.WriteTimeout == 0 {
		o.WriteTimeout = time.Minute
	}
	if o.IdleTimeout == 0 {
		o.IdleTimeout = 5 * time.Minute
	}
	if o.MaxHeaderBytes == 0 {
		o.MaxHeaderBytes = 64 << 10
	}
}

// Outcome says how a scrape ended. It is short and constant, for use as a metric label.
type Outcome string

// The outcomes.
const (
	OK Outcome = "ok"
	// NotReady: Ready said no. Status 503.
	NotReady Outcome = "not_ready"
	// NoPool: the request named a pool that there is not. Status 404.
	NoPool Outcome = "no_pool"
	// TooMany: MaxScrapesInFlight were in the making. Status 503.
	TooMany Outcome = "too_many"
	// TimedOut: the time that the scraper gave was over. Status 503.
	TimedOut Outcome = "timed_out"
	// Failed: the Gatherer failed. Status 500.
	Failed Outcome = "failed"
	// Panicked: a bug. Status 500.
	Panicked Outcome = "panicked"
	// Refused: a method other than GET and HEAD (405), or no acceptable coding (406).
	Refused Outcome = "refused"
	// Gone: the client closed the connection before it had the response.
	Gone Outcome = "gone"
)

// Outcomes lists all outcomes, so that a counter can be made for each.
func Outcomes() []Outcome {
	return []Outcome{OK, NotReady, NoPool, TooMany, TimedOut, Failed, Panicked, Refused, Gone}
}

// A ScrapeInfo tells what became of a request for metrics.
type ScrapeInfo struct {
	Outcome Outcome
	// Code is the status sent, or 0 where the client was gone before there was one.
	Code int
	// Duration is from the parsed request to the response handed to the kernel.
	Duration time.Duration
	// Format and Encoding ("gzip" or "identity") are those of the response, if it is OK.
	Format   exposition.Format
	Encoding string
	// PlainBytes is the size of the exposition, and WireBytes that of the body sent: less
	// after compression, none for HEAD.
	PlainBytes, WireBytes int
	// Shared says that the response was made for another scrape as well.
	Shared bool
	// Filtered says that pools or name[] selected a part, or the daemon's own metrics.
	Filtered bool
}
