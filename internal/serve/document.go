package serve

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// An API answers questions under /api/v1/.
type API interface {
	// Answer returns the status and the JSON for a path below /api/v1/ and its parameters.
	// It may be called by several goroutines, and must return early when ctx is done.
	Answer(ctx context.Context, path string, query url.Values) (code int, body []byte)
}

// apiPrefix is where the API is.
const apiPrefix = "/api/v1/"

// assetsPrefix is where the parts of the page are.
const assetsPrefix = "/assets/"

const (
	// maxQuestions is how many questions to the API may wait or be under way at once; more get
	// status 503.
	maxQuestions = 16
	// questionTime is how long a question may take, the time it waits included.
	questionTime = 10 * time.Second
)

// prometheusPaths are what a Prometheus server answers below /api/v1/, and we do not. Who
// asks for them takes us for one.
var prometheusPaths = []string{
	"query", "query_range", "query_exemplars", "format_query", "parse_query", "labels", "label", "metadata", "rules", "alerts",
	"targets", "scrape_pools", "alertmanagers", "status/", "read", "write", "otlp", "admin", "notifications", "features",
}

// notPrometheus is the answer to them.
const notPrometheus = "this is not a Prometheus server; point a Prometheus at "

// isPrometheus reports whether a request is one that clients of Prometheus send.
func isPrometheus(path string, r *http.Request) bool {
	if slices.ContainsFunc(prometheusPaths, func(p string) bool {
		return path == strings.TrimSuffix(p, "/") && !strings.HasSuffix(p, "/") || strings.HasPrefix(path, strings.TrimSuffix(p, "/")+"/")
	}) {
		return true
	}
	// We have series, too, and are asked for it in another way.
	return path == "series" && (r.Method == http.MethodPost || r.URL.Query().Has("match[]"))
}

// pageHeaders are sent with everything a browser shows or asks for in the name of the page:
// nothing of another site is loaded, no text is run as a script, nobody puts the page into
// a frame, and no address of it gets about.
var pageHeaders = map[string]string{
	"Content-Security-Policy":      "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
	"X-Content-Type-Options":       "nosniff",
	"X-Frame-Options":              "DENY",
	"Referrer-Policy":              "no-referrer",
	"Cross-Origin-Opener-Policy":   "same-origin",
	"Cross-Origin-Resource-Policy": "same-origin",
}

// api answers a question. At most maxAnswering are answered at once and the others wait, so
// that who looks does not take the processors from who scrapes.
func (s *Server) api(w *response, r *http.Request) {
	setPageHeaders(w.Header())
	defer func() { s.opts.OnQuestion(w.code) }()
	if !s.allowedHost(r) {
		sendJSONError(w, http.StatusForbidden, "forbidden", "this host name is not one of --web.allowed-hosts")
		return
	}
	path, ok := strings.CutPrefix(r.URL.Path, apiPrefix)
	if ok && isPrometheus(path, r) {
		sendJSONError(w, http.StatusNotFound, "not_found", notPrometheus+s.opts.TelemetryPath)
		return
	}
	if ok && slices.Contains(changePaths, path) {
		s.change(w, r, path)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		sendJSONError(w, http.StatusMethodNotAllowed, "bad_data", "method not allowed, use GET or HEAD")
		return
	}
	if !ok || s.opts.API == nil {
		sendJSONError(w, http.StatusNotFound, "not_found", "there is nothing here; the API is below "+apiPrefix)
		return
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		sendJSONError(w, http.StatusBadRequest, "bad_data", "the parameters cannot be read")
		return
	}
	if code, body := s.ask(w, r, path, query); body != nil {
		s.sendDocument(w, r, code, "application/json; charset=utf-8", body)
	}
}

// changePaths are the paths below apiPrefix at which something is changed, by POST.
var changePaths = []string{"archive/drop"}

// maxForm is how long the form of a change may be.
const maxForm = 64 << 10

// change does what a request asks for that changes something.
func (s *Server) change(w *response, r *http.Request, path string) {
	switch {
	case s.opts.Change == nil:
		sendJSONError(w, http.StatusForbidden, "forbidden",
			"changes by request are not enabled; start the daemon with --web.enable-lifecycle")
		return
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", "POST")
		sendJSONError(w, http.StatusMethodNotAllowed, "bad_data", "method not allowed, use POST")
		return
	case crossOrigin.Check(r) != nil:
		sendJSONError(w, http.StatusForbidden, "forbidden", "a page of another site asks for this")
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		sendJSONError(w, http.StatusBadRequest, "bad_data", "the form cannot be read")
		return
	}
	code, body := s.opts.Change(r.Context(), path, r.Form)
	s.sendDocument(w, r, code, "application/json; charset=utf-8", body)
}

// ask has a question answered when its turn comes. Without a body the request is answered, or
// nobody waits for it.
func (s *Server) ask(w *response, r *http.Request, path string, query url.Values) (code int, body []byte) {
	n := s.questions.Add(1)
	defer s.questions.Add(-1)
	if n > maxQuestions {
		w.Header().Set("Retry-After", "1")
		sendJSONError(w, http.StatusServiceUnavailable, "unavailable", "too many questions at once")
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(r.Context(), questionTime)
	defer cancel()
	select {
	case s.answering <- struct{}{}:
		defer func() { <-s.answering }()
		code, body = s.opts.API.Answer(ctx, path, query)
	case <-ctx.Done():
	}
	switch {
	case r.Context().Err() != nil:
		return 0, nil // nobody waits
	case body == nil:
		w.Header().Set("Retry-After", "1")
		sendJSONError(w, http.StatusServiceUnavailable, "unavailable", "too many questions at once")
	}
	return code, body
}

// sendJSONError sends constant words.
func sendJSONError(w http.ResponseWriter, code int, kind, text string) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	send(w, code, []byte(`{"status":"error","errorType":"`+kind+`","error":"`+text+`"}`+"\n")) //nolint:errcheck // the client is gone, and nobody else waits
}

func setPageHeaders(h http.Header) {
	for name, value := range pageHeaders {
		h.Set(name, value)
	}
}

// sendDocument answers a GET or HEAD with a document that the client may keep, as long as it
// asks whether it is still the same: then the answer is one without a body. It is compressed
// if the client takes that.
func (s *Server) sendDocument(w http.ResponseWriter, r *http.Request, code int, contentType string, body []byte) {
	setPageHeaders(w.Header())
	h := w.Header()
	h.Set("Cache-Control", "no-cache")
	h.Set("Vary", "Accept, Accept-Encoding")
	if code == http.StatusOK {
		sum := sha256.Sum256(body)
		tag := `W/"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`
		h.Set("ETag", tag)
		if knows(r.Header.Values("If-None-Match"), tag) {
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	h.Set("Content-Type", contentType)
	if encoding, _ := negotiateEncoding(r.Header.Values("Accept-Encoding")); encoding == gzipped && len(body) > 1024 {
		wire := new(buffer)
		if s.compress(wire, body) == nil {
			h.Set("Content-Encoding", gzipped)
			body = wire.b
		}
	}
	key := &body                                 // nobody else is sent this
	s.sendBody(w, r, code, key, cap(body), body) //nolint:errcheck // the client is gone, and nobody else waits
}

// knows reports whether one of the tags that a client names is this one, compared weakly.
func knows(values []string, tag string) bool {
	for _, value := range values {
		for t := range strings.SplitSeq(value, ",") {
			if t = strings.TrimSpace(t); t == "*" || strings.TrimPrefix(t, "W/") == strings.TrimPrefix(tag, "W/") {
				return true
			}
		}
	}
	return false
}
