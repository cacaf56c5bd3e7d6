package daemon

import (
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"aggregatord/internal/buildinfo"
	"aggregatord/internal/exposition"
	"aggregatord/internal/fleet"
	"aggregatord/internal/serve"
	"aggregatord/internal/telemetry"
)

// SelfMetrics says which of the daemon's own metrics are served, and where. All of them are at
// /-/metrics as well, unless SelfOff is said.
type SelfMetrics string

// The choices.
const (
	// SelfWith: the essential ones with the workers' metrics.
	SelfWith SelfMetrics = ""
	// SelfFull: all of them with the workers' metrics.
	SelfFull SelfMetrics = "full"
	// SelfSeparate: only at /-/metrics.
	SelfSeparate SelfMetrics = "separate"
	// SelfOff: nowhere.
	SelfOff SelfMetrics = "off"
)

// essential are the families that are served with the workers' metrics by default: those of
// the alerts, the recording rules and the dashboard in deploy, and of aggregatord doctor and
// top. A test compares.
var essential = []string{
	"aggregatord_archive_awaiting_files",
	"aggregatord_archive_fold_errors_total",
	"aggregatord_archive_folded_files_total",
	"aggregatord_archive_up",
	"aggregatord_build_info",
	"aggregatord_config_last_reload_successful",
	"aggregatord_cpu_seconds_total",
	"aggregatord_directory_bytes",
	"aggregatord_directory_inodes",
	"aggregatord_directory_up",
	"aggregatord_file_errors_total",
	"aggregatord_files",
	"aggregatord_liveness_files",
	"aggregatord_output_last_success_timestamp_seconds",
	"aggregatord_output_pushes_total",
	"aggregatord_output_up",
	"aggregatord_resident_anonymous_bytes",
	"aggregatord_scrape_duration_seconds",
	"aggregatord_scrape_size_bytes",
	"aggregatord_scrapes_total",
	"aggregatord_series",
	"aggregatord_workers",
}

// archiveSeconds is the histogram of which ForkMetrics shows the last value.
const archiveSeconds = "aggregatord_archive_fold_duration_seconds"

// addOptional adds what options ask for.
func (m *metrics) addOptional(set *telemetry.Set, opts Options) {
	if opts.LogStats != nil {
		dropped := set.Counter("aggregatord_log_dropped_lines_total",
			"Lines of the log that were dropped because whoever reads it was too slow or gone.")
		leftOut := set.Counter("aggregatord_log_left_out_lines_total",
			"Lines of the log that were left out because there were many of their kind; the next one of the kind tells how many.")
		set.OnSnapshot(func() {
			d, l := opts.LogStats()
			dropped.Set(float64(d))
			leftOut.Set(float64(l))
		})
	}
	if opts.ForkMetrics {
		const name = "prom_client_archive_duration_seconds"
		alias := set.Alias(name, "Time the last batch of dead workers' files took to archive.")
		set.OnSnapshot(func() { alias.Set(set.Last(archiveSeconds)) })
		set.MarkEssential(name)
	}
}

// metrics are the daemon's own metrics beside those of pool.
type metrics struct {
	scrapes   telemetry.CounterVec // outcome
	formats   telemetry.CounterVec // format, encoding
	refused   telemetry.CounterVec // reason
	questions telemetry.CounterVec // code
	seconds   telemetry.Histogram
	size      telemetry.GaugeVec   // encoding
	sentBytes telemetry.CounterVec // encoding
	omitted   telemetry.GaugeVec   // format
	losses    telemetry.GaugeVec   // format, served, reason

	events, overflows telemetry.CounterVec // pool
	eventsUp          telemetry.GaugeVec   // pool

	closed      telemetry.CounterVec // reason
	connections telemetry.Gauge
	// server is there when it serves.
	server atomic.Pointer[serve.Server]

	resident, goroutines telemetry.Gauge
	cpu                  telemetry.Counter
}

func newMetrics(set *telemetry.Set) *metrics {
	m := &metrics{
		scrapes: set.CounterVec("aggregatord_scrapes_total", "Requests for metrics, by outcome.", "outcome"),
		formats: set.CounterVec("aggregatord_scrape_formats_total", "Scrapes answered, by format and content encoding.", "format",
			"encoding"),
		refused: set.CounterVec("aggregatord_requests_refused_total",
			"Requests that the web configuration kept from being served: no or a wrong password, too many passwords to check, too high a rate, or a file that became unreadable.", "reason"),
		questions: set.CounterVec("aggregatord_api_requests_total",
			"Requests to the API, by status code; 503: it was not ready, or too many were under way; 0: the client had gone.", "code"),
		seconds: set.Histogram("aggregatord_scrape_duration_seconds",
			"Time from the request to the response handed to the kernel, for scrapes answered.",
			[]float64{.00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5}),
		size: set.GaugeVec("aggregatord_scrape_size_bytes",
			"Size of the body of the last scrape answered: plain as encoded, and as sent with each content encoding.", "encoding"),
		sentBytes: set.CounterVec("aggregatord_scrape_sent_bytes_total", "Bytes of response bodies sent.", "encoding"),
		omitted: set.GaugeVec("aggregatord_omissions",
			"Families, and parts of families, left out of a format because the exposition would be invalid with them; the log names them.",
			"format"),
		losses: set.GaugeVec("aggregatord_format_losses",
			"Families, and parts of families, that a format cannot carry, by reason: it leaves them out, or serves them without their type. The label served is the format that clients get instead if they accept both.", "format", "served", "reason"),
		events: set.CounterVec("aggregatord_watch_events_total", "File system events that said the directory may have changed.",
			"pool"),
		overflows: set.CounterVec("aggregatord_watch_overflows_total", "Times file system events were lost; a rescan makes up for it.",
			"pool"),
		eventsUp: set.GaugeVec("aggregatord_watch_up",
			"1 if the directory's file system events arrive; 0: the directory is listed every second.", "pool"),
		closed: set.CounterVec("aggregatord_connections_closed_total",
			"Connections closed to make room: idle or busy ones when there were too many, slow ones when responses on their way took too much memory.", "reason"),
		connections: set.Gauge("aggregatord_connections", "Clients that are connected."),
		resident: set.Gauge("aggregatord_resident_anonymous_bytes",
			"Anonymous resident memory of the daemon (RssAnon), without the mapped source files; 0 where it cannot be known."),
		cpu:        set.Counter("aggregatord_cpu_seconds_total", "CPU time the daemon has used."),
		goroutines: set.Gauge("aggregatord_goroutines", "Goroutines of the daemon."),
	}
	info := buildinfo.Get()
	set.GaugeVec("aggregatord_build_info", "Which build this is.", "version", "revision", "goversion").With(info.Version, info.Revision,
		info.GoVersion).Set(1)
	set.Gauge("aggregatord_start_time_seconds", "When the daemon started, in Unix seconds.").Set(float64(time.Now().UnixMilli()) / 1000)
	set.MarkEssential(essential...)
	for _, r := range serve.ClosedReasons() {
		m.closed.With(string(r))
	}
	for _, r := range serve.Refusals() {
		m.refused.With(string(r))
	}
	m.questions.With("200")
	for _, o := range serve.Outcomes() {
		m.scrapes.With(string(o)) // there before it counts
	}
	return m
}

// observe counts a scrape.
func (m *metrics) observe(i serve.ScrapeInfo) {
	m.scrapes.With(string(i.Outcome)).Inc()
	if i.Outcome != serve.OK {
		return
	}
	m.formats.With(i.Format.String(), i.Encoding).Inc()
	m.seconds.Observe(i.Duration.Seconds())
	m.sentBytes.With(i.Encoding).Add(float64(i.WireBytes))
	if !i.Filtered {
		m.size.With("plain").Set(float64(i.PlainBytes))
		if i.WireBytes > 0 {
			m.size.With(i.Encoding).Set(float64(i.WireBytes))
		}
	}
}

// reporter returns the function that logs and counts what formats do not carry.
func (m *metrics) reporter(log *zap.Logger) func(exposition.Report) {
	var mu sync.Mutex
	type key struct{ format, served string }
	known := map[key]map[exposition.Omission]bool{}
	return func(r exposition.Report) {
		mu.Lock()
		defer mu.Unlock()
		k := key{r.Format.String(), r.Instead.String()}
		if !r.Avoided() {
			m.omitted.With(k.format).Set(float64(len(r.Omissions)))
		}
		now, counts := map[exposition.Omission]bool{}, map[exposition.Reason]float64{}
		for _, o := range slices.Concat(r.Omissions, r.Untyped) {
			now[o] = true
			counts[o.Reason]++
			switch what := zap.Stringer("what", o); {
			case known[k][o]:
			case r.Avoided():
				log.Info("a format does not carry everything, another is served to those who accept it", zap.String("format", k.format),
					zap.String("served", k.served), what)
			case o.Untyped:
				log.Info("served without its type, which the format cannot say beside the rest", zap.String("format", k.format), what)
			default:
				log.Warn("left out of the exposition, which would be invalid with it", zap.String("format", k.format), what)
			}
		}
		for o := range known[k] {
			if counts[o.Reason] == 0 {
				m.losses.Remove(k.format, k.served, string(o.Reason))
			}
		}
		for reason, n := range counts {
			m.losses.With(k.format, k.served, string(reason)).Set(n)
		}
		known[k] = now
	}
}

// update brings the gauges up to date.
func (m *metrics) update(pools *fleet.Fleet) {
	for _, e := range pools.Events() {
		m.events.With(e.Pool).Set(float64(e.Events))
		m.overflows.With(e.Pool).Set(float64(e.Overflows))
		up := 0.0
		if e.Watching {
			up = 1
		}
		m.eventsUp.With(e.Pool).Set(up)
	}
	if s := m.server.Load(); s != nil {
		m.connections.Set(float64(s.Connections()))
	}
	m.resident.Set(float64(anonymousBytes()))
	m.cpu.Set(cpuSeconds())
	m.goroutines.Set(float64(runtime.NumGoroutine()))
}

// anonymousBytes returns RssAnon of proc_pid_status(5), or 0.
func anonymousBytes() int64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				return 0
			}
			return kb << 10
		}
	}
	return 0
}
