package serve

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"aggregatord/internal/exposition"
	"aggregatord/internal/view"
)

// timeoutHeader carries the scraper's patience, in seconds. Prometheus sends it with
// every scrape.
const timeoutHeader = "X-Prometheus-Scrape-Timeout-Seconds"

// ServeHTTP answers every request. A panic on the way costs the request only.
func (s *Server) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	markServed(r)
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
	if path := r.URL.Path; path == s.opts.TelemetryPath || path == "/" {
		h.Set("Vary", "Accept, Accept-Encoding")
	}
	switch r.URL.Path {
	case s.opts.TelemetryPath:
		s.metrics(w, r)
	case "/":
		if wantsHTML(r.Header.Values("Accept")) {
			s.opts.Home.ServeHTTP(w, r)
			return
		}
		// What runs in place of an exporter that serves its metrics at every path.
		s.metrics(w, r)
	case "/-/healthy":
		if allowed(w, r) {
			sendLine(w, http.StatusOK, "aggregatord is healthy")
		}
	case "/-/ready":
		if !allowed(w, r) {
			return
		}
		if why := s.notReady(); why != "" {
			sendLine(w, http.StatusServiceUnavailable, why)
			return
		}
		sendLine(w, http.StatusOK, "aggregatord is ready")
	case "/-/reload":
		s.reload(w, r)
	default:
		switch path := r.URL.Path; {
		case strings.HasPrefix(path, "/api/"):
			s.api(w, r)
			return
		case strings.HasPrefix(path, assetsPrefix):
			s.asset(w, r)
			return
		}
		sendLine(w, http.StatusNotFound, "not found; the metrics are at "+s.opts.TelemetryPath)
	}
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
func (s *Server) metrics(w *response, r *http.Request) {
	start := time.Now()
	info := ScrapeInfo{Outcome: Panicked, Code: http.StatusInternalServerError}
	defer func() {
		info.Duration = time.Since(start)
		if w.code != 0 {
			info.Code = w.code
		}
		s.opts.Observe(info)
	}()
	err := s.scrape(w, r, &info)
	s.note(info.Outcome, err)
}

// scrape does the work of metrics and fills info, whose Outcome stays Panicked until
// there is a better one.
func (s *Server) scrape(w *response, r *http.Request, info *ScrapeInfo) error {
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
	if n := s.inFlight.Add(1); s.opts.MaxScrapesInFlight > 0 && n > int64(s.opts.MaxScrapesInFlight) {
		s.inFlight.Add(-1)
		refuse(TooMany, http.StatusServiceUnavailable, fmt.Sprintf("too many scrapes: %d are in flight already", s.opts.MaxScrapesInFlight))
		return nil
	}
	defer s.inFlight.Add(-1)
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
	accept := exposition.ParseAccept(r.Header.Values("Accept")...)
	filter := exposition.NewFilter(r.URL.Query()["name[]"])
	made, shared, err := s.render(ctx, laneKey{accept, encoding}, filter)
	if made != nil {
		defer s.done(made)
	}
	info.Shared = shared
	switch {
	case r.Context().Err() != nil:
		info.Outcome, info.Code = Gone, 0
		return nil
	case ctx.Err() != nil: // also when it came just too late: nobody waits for it any more
		refuse(TimedOut, http.StatusServiceUnavailable, fmt.Sprintf("scrape took longer than the %v it had", patience))
		return fmt.Errorf("scrape took longer than the %v it had: %w", patience, ctx.Err())
	case err != nil:
		refuse(Failed, http.StatusInternalServerError, "gathering failed: "+err.Error())
		return err
	}
	info.Format, info.Encoding, info.Filtered, info.PlainBytes = made.format, encoding, !filter.All(), len(made.plain.b)
	h := w.Header()
	h.Set("Content-Type", made.format.ContentType())
	if encoding == gzipped {
		h.Set("Content-Encoding", encoding)
	}
	if err := send(w, http.StatusOK, made.wire.b); err != nil {
		info.Outcome = Gone
		return nil
	}
	info.Outcome = OK
	if r.Method == http.MethodGet {
		info.WireBytes = len(made.wire.b)
	}
	return nil
}

// encode gathers and appends the exposition to the rendering's buffer. If there is a
// packer, it is told of the sections.
func (s *Server) encode(r *rendering, p *packer) error {
	var snaps []*view.Snapshot
	if s.opts.Gatherer != nil {
		var err error
		snaps, err = s.opts.Gatherer.Gather(r.ctx)
		defer func() {
			for _, snap := range snaps {
				snap.Release()
			}
		}()
		if err != nil {
			return err
		}
	}
	var ends *[]int
	if p != nil {
		p.ends = p.ends[:0]
		ends = &p.ends
	}
	r.plain.b, r.format = s.opts.Encoder.Encode(r.plain.b, ends, r.accept, r.filter, snaps...)
	return nil
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

// note logs when scrapes begin to fail and when they work again. Refusals and clients
// that went away say nothing about the daemon.
func (s *Server) note(outcome Outcome, err error) {
	switch outcome {
	case OK, Failed, TimedOut:
	default:
		return
	}
	before, _ := s.state.Swap(outcome).(Outcome)
	switch {
	case outcome == before:
	case outcome != OK:
		s.opts.Logger.Error("scrapes fail", zap.String("outcome", string(outcome)), zap.Error(err))
	case before != "":
		s.opts.Logger.Info("scrapes succeed again")
	}
}

// panicked logs a panic and, if it still can, answers with status 500.
func (s *Server) panicked(w *response, r *http.Request, v any) {
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(v) // net/http's own word for closing a connection quietly
	}
	s.opts.Logger.Error("panic while serving", append(panicFields(v), zap.String("path", r.URL.Path))...)
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
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(code)
	_, err := w.Write(body)
	return err
}

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
