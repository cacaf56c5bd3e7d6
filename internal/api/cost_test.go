package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"aggregatord/internal/status"
)

// query asks one question and returns the status and the error's kind and text.
func (h *harness) query(ctx context.Context, path string, query url.Values) (code int, r status.Response[json.RawMessage]) {
	h.t.Helper()
	code, body := h.Answer(ctx, path, query)
	if err := json.Unmarshal(body, &r); err != nil {
		h.t.Fatalf("%s: %v", body, err)
	}
	return code, r
}

// TestCost: a question that would cost too much is refused with a reason, and one that nobody
// waits for is given up.
func TestCost(t *testing.T) {
	h := newHarness(t, false)
	h.steps = 20_000
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	many := make([]entry, 3000)
	for i := range many {
		many[i] = entry{"order", "order_total", []string{"path", strings.Repeat("a", 100) + fmt.Sprint(i)}, 1, 0}
	}
	write(t, h.dir, "counter_4.db", many...)
	tend(h.collector)
	for _, tc := range []struct {
		name, path string
		query      url.Values
		ctx        context.Context //nolint:containedctx // a case's own
		code       int
		words      string
	}{
		{"series", "series", url.Values{"match": {`{path=~"(a?){50}z"}`}}, t.Context(), 422, "costs too much"},
		{"explain", "explain", url.Values{"series": {`{path=~"(a?){50}z"}`}}, t.Context(), 422, "costs too much"},
		{"cheaper_by_name", "series", url.Values{"match": {`requests_total{path=~"/b.*"}`}}, t.Context(), 200, ""},
		{"plain", "explain", url.Values{"series": {`requests_total{path="/"}`}}, t.Context(), 200, ""},
		{"too_large", "series", url.Values{"match": {`{path=~"(a?){1000}z"}`}}, t.Context(), 400, "too large"},
		{
			"long_search", "series",
			url.Values{"family": {"requests"}, "search": {strings.Repeat("x", maxSearch+1)}},
			t.Context(), 400,
			"search",
		},
		{"long_search_of_a_list", "families", url.Values{"search": {strings.Repeat("x", maxSearch+1)}}, t.Context(), 400, "search"},
		{"nobody_waits", "series", url.Values{"match": {`{path=~"a+"}`}}, gone, 503, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, r := h.query(tc.ctx, tc.path, tc.query)
			if code != tc.code || !strings.Contains(r.Error, tc.words) {
				t.Errorf("%d %s, want %d with %q", code, r.Error, tc.code, tc.words)
			}
		})
	}
	h.steps = 1 << 40
	if code, r := h.query(gone, "series", url.Values{"match": {`{path=~"(a?){50}z"}`}}); code != 503 {
		t.Errorf("given up with %d %s", code, r.Error)
	}
}

// TestAnswerIsBounded: labels may be long, and 5000 of them are asked for at once.
func TestAnswerIsBounded(t *testing.T) {
	h := newHarness(t, false)
	many := make([]entry, 2000)
	for i := range many {
		many[i] = entry{"order", "order_total", []string{"path", strings.Repeat("a", 2000) + fmt.Sprint(i)}, 1, 0}
	}
	write(t, h.dir, "counter_4.db", many...)
	tend(h.collector)
	if code, r := h.query(t.Context(), "series", url.Values{"family": {"order"}, "limit": {"5000"}}); code != 400 ||
		!strings.Contains(r.Error, "limit=") {
		t.Errorf("%d %s", code, r.Error)
	}
	if code, r := h.query(t.Context(), "series", url.Values{"family": {"order"}, "limit": {"100"}}); code != 200 {
		t.Errorf("%d %s", code, r.Error)
	}
}

// FuzzAnswer: whatever is asked, the answer is JSON with a status that says what it is.
func FuzzAnswer(f *testing.F) {
	for path := range questions {
		f.Add(path, "limit=1&offset=2&search=a&sort=-name&own=true&family=requests&match=%7B%7D&series=requests_total&pool=&worker=1")
		f.Add(path, "")
	}
	f.Add("series", `match={path=~"(a?){90}"}&limit=9999999999999999999`)
	f.Add("explain", `series={"a", b!~"["}&limit=-1`)
	f.Add("../status", "%zz=%00&;")
	h := newHarness(f, false)
	h.steps = 1 << 20
	f.Fuzz(func(t *testing.T, path, raw string) {
		query, err := url.ParseQuery(raw)
		if err != nil || len(raw) > 64<<10 {
			return
		}
		code, body := h.Answer(t.Context(), path, query)
		var r status.Response[json.RawMessage]
		if err := json.Unmarshal(body, &r); err != nil {
			t.Fatalf("%s?%s: %v", path, raw, err)
		}
		if (code == 200) != (r.Status == "success") || code != 200 && (r.Error == "" || code < 400 || code == 500 || code > 503) {
			t.Fatalf("%s?%s: %d %s", path, raw, code, body)
		}
		if len(body) > 64<<10+8*len(raw) {
			t.Fatalf("%s?%s: %d bytes", path, raw, len(body))
		}
	})
}
