package serve

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"
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

// maxQuestions is how many questions to the API may be under way at once; more get status
// 503. It bounds memory, and what people who look keep from those who scrape.
const maxQuestions = 16

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

// api answers a question.
func (s *Server) api(w *response, r *http.Request) {
	setPageHeaders(w.Header())
	defer func() { s.opts.OnQuestion(w.code) }()
	if !allowed(w, r) {
		return
	}
	if n := s.questions.Add(1); n > maxQuestions {
		s.questions.Add(-1)
		w.Header().Set("Retry-After", "1")
		sendJSONError(w, http.StatusServiceUnavailable, "unavailable", "too many questions at once")
		return
	}
	defer s.questions.Add(-1)
	path, ok := strings.CutPrefix(r.URL.Path, apiPrefix)
	if !ok || s.opts.API == nil {
		sendJSONError(w, http.StatusNotFound, "not_found", "there is nothing here; the API is below "+apiPrefix)
		return
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		sendJSONError(w, http.StatusBadRequest, "bad_data", "the parameters cannot be read")
		return
	}
	code, body := s.opts.API.Answer(r.Context(), path, query)
	if r.Context().Err() != nil {
		return // nobody waits
	}
	SendDocument(w, r, code, "application/json; charset=utf-8", body)
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

// SendDocument answers a GET or HEAD with a document that the client may keep, as long as it
// asks whether it is still the same: then the answer is one without a body. It is compressed
// if the client takes that.
func SendDocument(w http.ResponseWriter, r *http.Request, code int, contentType string, body []byte) {
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
		wire := getBuffer(&wires)
		defer wires.put(wire)
		if compress(wire, body) == nil {
			h.Set("Content-Encoding", gzipped)
			body = wire.b
		}
	}
	send(w, code, body) //nolint:errcheck // the client is gone, and nobody else waits
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
