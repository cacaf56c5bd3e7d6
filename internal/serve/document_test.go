package serve

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// apiFunc is an API from a function.
type apiFunc func(ctx context.Context, path string, query url.Values) (int, []byte)

func (f apiFunc) Answer(ctx context.Context, path string, query url.Values) (int, []byte) {
	return f(ctx, path, query)
}

func echo(_ context.Context, path string, query url.Values) (int, []byte) {
	if path == "teapot" {
		return http.StatusTeapot, []byte("{}\n")
	}
	return http.StatusOK, []byte(`{"path":"` + path + `","x":"` + query.Get("x") + `","long":"` + strings.Repeat("a", 2000) + `"}` + "\n")
}

func TestAPI(t *testing.T) {
	s := New(Options{API: apiFunc(echo)})
	resp := do(s, "GET", "/api/v1/things?x=1")
	if got := body(t, resp); resp.StatusCode != 200 || !strings.HasPrefix(got, `{"path":"things","x":"1"`) {
		t.Errorf("%d %s", resp.StatusCode, got)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/json; charset=utf-8", "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff",
		"Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY",
	} {
		if got := resp.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if csp := resp.Header.Get("Content-Security-Policy"); strings.Contains(csp, "unsafe") || !strings.Contains(csp, "default-src 'none'") ||
		!strings.Contains(csp, "frame-ancestors 'none'") {
		t.Errorf("Content-Security-Policy: %q", csp)
	}
	tag := resp.Header.Get("ETag")
	if resp := do(s, "GET", "/api/v1/things?x=1", "If-None-Match", tag); resp.StatusCode != 304 || body(t, resp) != "" {
		t.Errorf("a known answer: %d", resp.StatusCode)
	}
	if resp := do(s, "GET", "/api/v1/things?x=2", "If-None-Match", `"other", `+tag); resp.StatusCode != 200 {
		t.Errorf("another answer: %d", resp.StatusCode)
	}
	if resp := do(s, "GET", "/api/v1/teapot"); resp.StatusCode != 418 || resp.Header.Get("ETag") != "" {
		t.Errorf("an error: %d, %v", resp.StatusCode, resp.Header)
	}
	zipped := do(s, "GET", "/api/v1/things", "Accept-Encoding", "gzip")
	if zipped.Header.Get("Content-Encoding") != "gzip" || zipped.ContentLength > 200 {
		t.Errorf("%v", zipped.Header)
	}
	for _, tc := range []struct {
		method, target string
		code           int
	}{
		{"POST", "/api/v1/things", 405},
		{"DELETE", "/api/v1/things", 405},
		{"GET", "/api/v2/things", 404},
		{"GET", "/api/", 404},
		{"GET", "/api/v1/things?%zz", 400},
		{"GET", "/assets/x", 404},
	} {
		if resp := do(s, tc.method, tc.target); resp.StatusCode != tc.code {
			t.Errorf("%s %s: %d, want %d", tc.method, tc.target, resp.StatusCode, tc.code)
		}
	}
	if resp := do(New(Options{}), "GET", "/api/v1/things"); resp.StatusCode != 404 {
		t.Errorf("without an API: %d", resp.StatusCode)
	}
}

// TestTooManyQuestions: who asks too much at once is told so, and scrapes go on.
func TestTooManyQuestions(t *testing.T) {
	asked, answer := make(chan bool), make(chan bool)
	s := New(Options{API: apiFunc(func(context.Context, string, url.Values) (int, []byte) {
		asked <- true
		<-answer
		return 200, []byte("{}")
	})})
	var wg sync.WaitGroup
	for range maxQuestions {
		wg.Go(func() {
			if resp := do(s, "GET", "/api/v1/x"); resp.StatusCode != 200 {
				t.Errorf("%d", resp.StatusCode)
			}
		})
	}
	for range cap(s.answering) {
		<-asked
	}
	for s.questions.Load() < maxQuestions { // the others wait
		runtime.Gosched()
	}
	go func() {
		for range maxQuestions - cap(s.answering) {
			<-asked
		}
	}()
	resp := do(s, "GET", "/api/v1/x")
	if text, _ := io.ReadAll(resp.Body); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" ||
		!strings.Contains(string(text), "too many") {
		t.Errorf("%d %s", resp.StatusCode, text)
	}
	if resp := do(s, "GET", "/metrics"); resp.StatusCode != 200 {
		t.Errorf("a scrape meanwhile: %d", resp.StatusCode)
	}
	close(answer)
	wg.Wait()
}
