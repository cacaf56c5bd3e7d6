package serve

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"aggregatord/internal/exposition"
)

// timeoutHeader carries the scraper's patience, in seconds. Prometheus sends it with
// every scrape.
const timeoutHeader = "X-Prometheus-Scrape-Timeout-Seconds"

// ServeHTTP answers every request. A panic on the way costs the request only.
func (s *Server) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	s.handlers.Add(1)
	defer s.handlers.Add(-1)
	w := &response{ResponseWriter: rw}
	defer func() {
		if v := recover(); v != nil {
			s.panicked(w, r, v)
		}
	}()
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff") // names and labels are the workers' words
	path := r.URL.Path
	if request, ok := s.scrapeAt(r); ok {
		h.Set("Vary", "Accept, Accept-Encoding")
		if path == "/" && s.opts.TelemetryPath != "/" && wantsHTML(r.Header.Values("Accept")) {
			s.home(w, r)
			return
		}
		s.metrics(w, r, request)
		return
	}
	switch path {
	case "/-/healthy":
		if allowed(w, r) {
			sendLine(w, http.StatusOK, "aggregatord is healthy")
		}
	case readyPath:
		s.ready(w, r, r.URL.Query().Get("pool"))
	case targetsPath:
		s.targets(w, r)
	case "/-/reload":
		s.reload(w, r)
	default:
		pool, isReady := strings.CutSuffix(strings.TrimPrefix(path, poolsPath), readyPath)
		switch {
		case isReady && pool != "" && strings.HasPrefix(path, poolsPath):
			s.ready(w, r, pool)
		case strings.HasPrefix(path, "/api/"):
			s.api(w, r)
		case strings.HasPrefix(path, assetsPrefix):
			s.asset(w, r)
		default:
			sendLine(w, http.StatusNotFound, "not found; the metrics are at "+s.opts.TelemetryPath)
		}
	}
}

const (
	// selfPath is where the daemon's own metrics are by themselves.
	selfPath = "/-/metrics"
	// poolsPath and poolMetrics are around the name of a pool.
	poolsPath, poolMetrics = "/pools/", "/metrics"
)

// scrapeAt returns what is asked for at the path of a request, if there are metrics at it:
//
//	/metrics              everything; with ?pool=NAME, repeatable, only these pools
//	/metrics/             the same, as many exporters have it
//	/                     the same: the daemon may replace an exporter that answers there
//	/pools/NAME/metrics   one pool, without the label pool
//	/-/metrics            the daemon's own, unless there are none
//	any other             the same as /metrics, if the options say so
func (s *Server) scrapeAt(r *http.Request) (request Request, ok bool) {
	path := r.URL.Path
	switch path {
	case "/", s.opts.TelemetryPath, s.opts.TelemetryPath + "/":
		request.Pools = sortedSet(slices.Clone(r.URL.Query()["pool"]))
		return request, true
	case selfPath:
		request.SelfOnly = true
		return request, !s.opts.NoSelfMetrics
	}
	if name, found := strings.CutPrefix(path, poolsPath); found {
		if name, found = strings.CutSuffix(strings.TrimSuffix(name, "/"), poolMetrics); found && name != "" {
			return Request{Pools: []string{name}, BarePools: true}, true
		}
	}
	if strings.HasPrefix(path, poolsPath) && strings.HasSuffix(path, readyPath) {
		return request, false
	}
	if !s.opts.AnyPath || strings.HasPrefix(path, "/api/") || strings.HasPrefix(path, assetsPrefix) || strings.HasPrefix(path, "/-/") {
		return request, false
	}
	return request, true
}

// crossOrigin refuses requests that a page of somebody else makes a browser send.
var crossOrigin = http.NewCrossOriginProtection()

// reload answers a request to read the configuration again, with the status codes of
// Prometheus.
func (s *Server) reload(w http.ResponseWriter, r *http.Request) {
	switch {
	case s.opts.Reload == nil:
		sendLine(w, http.StatusForbidden, "reloading by request is not enabled; start with --web.enable-lifecycle, or send SIGHUP")
	case r.Method != http.MethodPost && r.Method != http.MethodPut:
		w.Header().Set("Allow", "POST, PUT")
		sendLine(w, http.StatusMethodNotAllowed, "method not allowed, use POST")
	case !s.allowedHost(r):
		sendLine(w, http.StatusForbidden, "this host name is not one of --web.allowed-hosts")
	case crossOrigin.Check(r) != nil:
		sendLine(w, http.StatusForbidden, "a page of another site asks for this")
	default:
		if err := s.opts.Reload(); err != nil {
			sendLine(w, http.StatusInternalServerError, "the configuration was not reloaded: "+err.Error())
			return
		}
		sendLine(w, http.StatusOK, "reloaded")
	}
}

// notReady returns why a load balancer should send nobody here, or "".
func (s *Server) notReady() string {
	switch {
	case s.stopping.Load():
		return "not ready: stopping"
	case !s.opts.Ready():
		return "not ready: not all sources have been read yet"
	}
	return ""
}

// allowed reports whether the method is one that reads, and refuses the request otherwise.
func allowed(w http.ResponseWriter, r *http.Request) bool {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return true
	}
	w.Header().Set("Allow", "GET, HEAD")
	sendLine(w, http.StatusMethodNotAllowed, "method not allowed, use GET or HEAD")
	return false
}

// metrics answers a scrape and tells Observe about it.
func (s *Server) metrics(w *response, r *http.Request, request Request) {
	start := time.Now()
	info := ScrapeInfo{Outcome: Panicked, Code: http.StatusInternalServerError}
	defer func() {
		info.Duration = time.Since(start)
		if w.code != 0 {
			info.Code = w.code
		}
		s.opts.Observe(info)
	}()
	err := s.scrape(w, r, request, &info)
	s.note(info.Outcome, err)
}

// scrape does the work of metrics and fills info, whose Outcome stays Panicked until
// there is a better one.
func (s *Server) scrape(w *response, r *http.Request, request Request, info *ScrapeInfo) error {
	refuse := func(outcome Outcome, code int, line string) {
		info.Outcome = outcome
		if code == http.StatusServiceUnavailable {
			w.Header().Set("Retry-After", "1")
		}
		sendLine(w, code, line)
	}
	if !allowed(w, r) {
		info.Outcome = Refused
		return nil
	}
	encoding, ok := negotiateEncoding(r.Header.Values("Accept-Encoding"))
	if !ok {
		refuse(Refused, http.StatusNotAcceptable, "no acceptable content coding: gzip and identity are served")
		return nil
	}
	if !s.opts.Ready() {
		refuse(NotReady, http.StatusServiceUnavailable, "not ready: not all sources have been read yet")
		return nil
	}

	ctx, patience := r.Context(), time.Duration(0)
	if patience = scrapeTimeout(r.Header.Get(timeoutHeader)); patience > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	q := question{
		// A client may send several lines, which are one list (RFC 9110, section 5.3).
		accept:   exposition.ParseAccept(r.Header.Values("Accept")...),
		encoding: encoding, request: request,
		names: namesOf(r.URL.Query()["name[]"]),
	}
	made, shared, err := s.render(ctx, q)
	if made != nil {
		defer s.done(made)
	}
	info.Shared = shared
	switch {
	case r.Context().Err() != nil:
		info.Outcome, info.Code = Gone, 0
		return nil
	case errors.Is(err, errTooMany):
		refuse(TooMany, http.StatusServiceUnavailable, fmt.Sprintf("too many scrapes: %d that select a part are in the making already",
			s.opts.MaxScrapesInFlight))
		return nil
	case ctx.Err() != nil: // also when it came just too late: nobody waits for it any more
		refuse(TimedOut, http.StatusServiceUnavailable, fmt.Sprintf("scrape took longer than the %v it had", patience))
		return fmt.Errorf("scrape took longer than the %v it had: %w", patience, ctx.Err())
	case errors.Is(err, ErrNoPool):
		refuse(NoPool, http.StatusNotFound, err.Error())
		return nil
	case errors.Is(err, ErrPoolNotReady):
		refuse(NotReady, http.StatusServiceUnavailable, err.Error())
		return nil
	case err != nil:
		refuse(Failed, http.StatusInternalServerError, "gathering failed: "+err.Error())
		return err
	}
	info.Format, info.Encoding, info.PlainBytes = made.format, encoding, made.plainBytes
	info.Filtered = !q.key().isWhole()
	h := w.Header()
	h.Set("Content-Type", made.format.ContentType())
	if encoding == gzipped {
		h.Set("Content-Encoding", encoding)
	}
	if err := s.sendBody(w, r, http.StatusOK, made, cap(made.wire.b), made.wire.b); err != nil {
		info.Outcome = Gone
		return nil
	}
	info.Outcome = OK
	if r.Method == http.MethodGet {
		info.WireBytes = len(made.wire.b)
	}
	return nil
}

// namesOf returns the values of name[] that select something, sorted.
func namesOf(values []string) []string {
	names := slices.DeleteFunc(slices.Clone(values), func(name string) bool { return name == "" })
	return sortedSet(names)
}

// scrapeTimeout returns how long a scrape may take by the value of timeoutHeader: a tenth
// less than the scraper will wait, but not more than half a second less, so that it can
// still read why. It returns 0 for a value that says nothing.
func scrapeTimeout(value string) time.Duration {
	seconds, err := strconv.ParseFloat(value, 64)
	if err != nil || !(seconds > 0) || seconds > math.MaxInt64/float64(time.Second)/2 {
		return 0
	}
	given := time.Duration(seconds * float64(time.Second))
	return max(given-min(given/10, 500*time.Millisecond), 1)
}

// maxChanges is how often a minute it is told that scrapes begin to fail or succeed, and how
// many panics are told in full.
const maxChanges = 10

// leftOut says how many lines of a kind were left out before this one.
func leftOut(n int) []zap.Field {
	if n == 0 {
		return nil
	}
	return []zap.Field{zap.Int("left_out", n)}
}

// note logs when scrapes begin to fail and when they work again. Refusals and clients
// that went away say nothing about the daemon.
func (s *Server) note(outcome Outcome, err error) {
	switch outcome {
	case OK, Failed, TimedOut:
	default:
		return
	}
	before, _ := s.state.Swap(outcome).(Outcome)
	if outcome == before || outcome == OK && before == "" {
		return
	}
	left, ok := s.samples.allow("scrapes", "", maxChanges)
	switch fields := leftOut(left); {
	case !ok:
	case outcome != OK:
		s.opts.Logger.Error("scrapes fail", append(fields, zap.String("outcome", string(outcome)), zap.Error(err))...)
	default:
		s.opts.Logger.Info("scrapes succeed again", fields...)
	}
}

// panicked logs a panic and, if it still can, answers with status 500.
func (s *Server) panicked(w *response, r *http.Request, v any) {
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(v) // net/http's own word for closing a connection quietly
	}
	if left, ok := s.samples.allow("panic", "", maxChanges); ok {
		fields := append(panicFields(v), zap.String("path", r.URL.Path))
		s.opts.Logger.Error("panic while serving", append(fields, leftOut(left)...)...)
	}
	if w.code != 0 {
		panic(http.ErrAbortHandler) // part of a response must not pass for all of it
	}
	for name := range w.Header() {
		if name != "Vary" && name != "X-Content-Type-Options" {
			w.Header().Del(name)
		}
	}
	sendLine(w, http.StatusInternalServerError, "internal error")
}

// sendLine sends a status and one line of plain text. Joined errors have line feeds.
func sendLine(w http.ResponseWriter, code int, line string) {
	line = strings.ReplaceAll(line, "\n", "; ")
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	send(w, code, []byte(line+"\n")) //nolint:errcheck // the client is gone, and nobody else waits
}

// send sends a response with one Write. For HEAD net/http drops the body.
func send(w http.ResponseWriter, code int, body []byte) error {
	setLength(w, len(body))
	w.WriteHeader(code)
	_, err := w.Write(body)
	return err
}

func setLength(w http.ResponseWriter, n int) { w.Header().Set("Content-Length", strconv.Itoa(n)) }

// A response remembers the status sent.
type response struct {
	http.ResponseWriter
	code int
}

func (w *response) WriteHeader(code int) {
	if w.code == 0 {
		w.code = code
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *response) Write(p []byte) (int, error) {
	if w.code == 0 {
		w.code = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }
