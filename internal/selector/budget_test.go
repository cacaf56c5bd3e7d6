package selector

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"aggregatord/internal/metric"
)

// TestCostBounds: what would cost much is refused before it does.
func TestCostBounds(t *testing.T) {
	for _, tc := range []struct{ name, text, words string }{
		{"long", `{a="` + strings.Repeat("x", maxText) + `"}`, "bytes, more than"},
		{"long_expression", `{a=~"` + strings.Repeat("x", maxExpression+1) + `"}`, "bytes, more than"},
		{"repeated", `{a=~"(a?){1000}z"}`, "too large"},
		{"nested", `{a=~"((a{10}){10}){10}"}`, "too large"},
		{"many_repeated", `{a=~"` + strings.Repeat("(a?){900}", 100) + `"}`, "too large"},
		{"wide_classes", `{a=~"` + strings.Repeat(`\\pL`, 200) + `"}`, "too large"},
		{"open_repeat", `{a=~"(abc){500,}"}`, "too large"},
		{"many_conditions", `{` + strings.Repeat(`a=~"b",`, maxMatchers+1) + `}`, "conditions"},
		{"leaves_its_group", `{a=~"x)|(y"}`, "regular expression"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := Parse(tc.text)
			runtime.ReadMemStats(&after)
			if err == nil || !strings.Contains(err.Error(), tc.words) {
				t.Errorf("%v, want %q", err, tc.words)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
				t.Errorf("to refuse it took %d bytes", n)
			}
		})
	}
	for _, text := range []string{
		`{a=~"/order/[0-9]+(/items)?"}`, `{a=~"(GET|POST|PUT|DELETE)"}`, `{a=~"\\d{1,40}"}`,
		`{a=~"(?i:abc)\\pL+"}`, `{a=~"[a-f0-9]{8}(-[a-f0-9]{4}){3}-[a-f0-9]{12}"}`,
	} {
		if _, err := Parse(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestBudget: when it is used up, nothing matches any more and the reason is told.
func TestBudget(t *testing.T) {
	sel, err := Parse(`{path=~"(a?){100}z"}`)
	if err != nil {
		t.Fatal(err)
	}
	labels := []metric.Label{{Name: "path", Value: strings.Repeat("a", 50) + "z"}}
	t.Run("steps", func(t *testing.T) {
		b := &Budget{Steps: 1e6}
		matched := 0
		for range 1000 {
			if sel.Within(b).Matches("x", labels, "", "") {
				matched++
			}
		}
		if !errors.Is(b.Err(), ErrCost) || matched == 0 || matched > 1e6/5000 {
			t.Errorf("%d matched, %v", matched, b.Err())
		}
	})
	t.Run("one_long_value", func(t *testing.T) {
		b := &Budget{Steps: 1 << 40}
		if sel.Within(b).Matches("x", []metric.Label{{Name: "path", Value: strings.Repeat("a", 1<<20)}}, "", ""); !errors.Is(b.Err(),
			ErrCost) {
			t.Errorf("%v", b.Err())
		}
	})
	t.Run("stop", func(t *testing.T) {
		stop, asked := errors.New("stop"), 0
		b := &Budget{Steps: 1 << 40, Stop: func() error { asked++; return stop }}
		for range 1000 {
			sel.Within(b).Matches("x", labels, "", "")
		}
		if b.Err() != stop || asked != 1 { //nolint:errorlint // the very error
			t.Errorf("%v after %d questions", b.Err(), asked)
		}
	})
	t.Run("without_expressions", func(t *testing.T) {
		b := &Budget{Steps: 10}
		for range 20 {
			Selector{Name: "y"}.Within(b).Matches("x", labels, "", "")
		}
		if !errors.Is(b.Err(), ErrCost) {
			t.Errorf("%v", b.Err())
		}
	})
	if !sel.Matches("x", labels, "", "") {
		t.Error("without a budget it does not match")
	}
}

// TestExact: it means the very series, and no other.
func TestExact(t *testing.T) {
	label := func(name, value string) metric.Label { return metric.Label{Name: name, Value: value} }
	series := []Series{
		{Name: "a_total", Labels: []metric.Label{label("x", "1"), label("y", "2")}},
		{Name: "h_bucket", Labels: []metric.Label{label("x", "1")}, BoundLabel: "le", Bound: "1.0"},
		{Name: "g"},
	}
	sel := Exact(series...)
	for i, s := range append(series,
		Series{Name: "a_total", Labels: []metric.Label{label("x", "1")}},
		Series{Name: "b_total", Labels: []metric.Label{label("x", "1"), label("y", "2")}},
		Series{Name: "a_total", Labels: []metric.Label{label("x", "1\xffy"), label("", "2")}},
		Series{Name: "h_bucket", Labels: []metric.Label{label("x", "1")}, BoundLabel: "le", Bound: "2.0"},
		Series{Name: "h_bucket", Labels: []metric.Label{label("x", "1")}},
		Series{Name: "g", Labels: []metric.Label{label("x", "1")}},
	) {
		if got := sel.Matches(s.Name, s.Labels, s.BoundLabel, s.Bound); got != (i < len(series)) {
			t.Errorf("%v: %v", s, got)
		}
	}
	if s := Exact(); s.Matches("a_total", nil, "", "") {
		t.Error("no series means one")
	}
	if n := testing.AllocsPerRun(100, func() { sel.Matches("a_total", series[0].Labels, "", "") }); n > 0 {
		t.Errorf("%v allocations for each series", n)
	}
}

// FuzzCost: whatever is asked, to understand it takes a bounded time and memory, and a series
// that is spelled by Format means itself.
func FuzzCost(f *testing.F) {
	for _, text := range []string{
		``, `{}`, `a_total`, `a_total{x="1",y!="2",z=~"3.*",w!~"4|5"}`, `{"http.requests", path="/"}`, "{a=`b`}", `{a='\x'}`,
		`{a=~"(a?){1000}"}`,
		`{__name__=~".+"}`, `h_bucket{le="1"}`, `{a=~"((((((((((a{9}){9}){9}){9}){9}){9}){9}){9}){9}){9}"}`, `{a=~"(?i:\\pL)"}`, `a{`,
		`a{x`, `a{x=`, `a{x="`,
	} {
		f.Add(text, "v")
	}
	f.Fuzz(func(t *testing.T, text, value string) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		sel, err := Parse(text)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20+uint64(len(text))*64 {
			t.Fatalf("Parse took %d bytes for %d", n, len(text))
		}
		if err == nil {
			b := &Budget{Steps: 1 << 22}
			sel.Within(b).Matches("a_total", []metric.Label{{Name: "x", Value: value}}, "le", "1.0")
		}
		labels := []metric.Label{{Name: "x", Value: value}, {Name: text, Value: "1"}}
		if text == "" || text == "x" || text == nameLabel || text == "le" || len(text)+len(value) > 1000 {
			return
		}
		spelled := Format("a_total", labels, "le", "1.0")
		again, err := Parse(spelled)
		if err != nil || !again.Matches("a_total", labels, "le", "1.0") {
			t.Fatalf("%s: %v", spelled, fmt.Sprint(err))
		}
	})
}
