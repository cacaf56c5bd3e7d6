package top

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"aggregatord/internal/status"
	"aggregatord/internal/terminal"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// read is a reading some seconds after start, of families with these totals.
func read(after float64, totals map[string]float64) *Reading {
	at := start.Add(time.Duration(after * float64(time.Second)))
	r := &Reading{
		Overview:   status.Overview{Ready: true, Started: 1000, Build: status.Build{Version: "v1"}},
		FamiliesAt: 2000 + after, Own: map[string]float64{scrapeCount: 0, scrapeSeconds: 0}, At: at,
	}
	for name, total := range totals {
		f := status.Family{Name: name, Type: "counter", Series: 1, Samples: 1}
		if total != gauge {
			n := status.Number(total)
			f.Total = &n
		}
		r.Families = append(r.Families, f)
	}
	return r
}

// gauge is the total of a family that has none.
const gauge = 123456

// TestRates: what two readings say about how fast a family grows.
func TestRates(t *testing.T) {
	restarted := read(2, map[string]float64{"a": 30})
	restarted.Overview.Started = 1001
	unready := read(2, nil)
	unready.FamiliesAt = 0
	for name, tc := range map[string]struct {
		readings []*Reading
		want     string // the rate of a as shown
	}{
		"first":         {[]*Reading{read(0, map[string]float64{"a": 10})}, "-"},
		"grows":         {[]*Reading{read(0, map[string]float64{"a": 10}), read(2, map[string]float64{"a": 30})}, "10.0"},
		"rests":         {[]*Reading{read(0, map[string]float64{"a": 10}), read(2, map[string]float64{"a": 10})}, "0"},
		"by_the_daemon": {[]*Reading{read(0, map[string]float64{"a": 0}), read(0.5, map[string]float64{"a": 1})}, "2.00"},
		"falls":         {[]*Reading{read(0, map[string]float64{"a": 10}), read(2, map[string]float64{"a": 3})}, "-"},
		"falls_and_grows": {[]*Reading{
			read(0, map[string]float64{"a": 10}), read(2, map[string]float64{"a": 3}),
			read(4, map[string]float64{"a": 5}),
		}, "1.00"},
		"not_a_number": {[]*Reading{read(0, map[string]float64{"a": 10}), read(2, map[string]float64{"a": math.NaN()})}, "-"},
		"infinite":     {[]*Reading{read(0, map[string]float64{"a": 10}), read(2, map[string]float64{"a": math.Inf(1)})}, "-"},
		"new_family":   {[]*Reading{read(0, nil), read(2, map[string]float64{"a": 10})}, "-"},
		"the_same_moment": {[]*Reading{
			read(0, map[string]float64{"a": 10}), read(2, map[string]float64{"a": 30}),
			read(2, map[string]float64{"a": 30}),
		}, "10.0"},
		"daemon_restarted":  {[]*Reading{read(0, map[string]float64{"a": 10}), restarted}, "-"},
		"not_ready_between": {[]*Reading{read(0, map[string]float64{"a": 10}), unready, read(4, map[string]float64{"a": 30})}, "-"},
		"gauge":             {[]*Reading{read(0, map[string]float64{"a": gauge}), read(2, map[string]float64{"a": gauge})}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var v View
			for _, r := range tc.readings {
				v.Add(r)
			}
			got := "no row"
			for _, line := range v.Frame(0, 0, start.Add(time.Minute)) {
				if fields := strings.Fields(line.Text); len(fields) > 2 && fields[0] == "a" {
					if got = fields[1]; len(fields) == 4 { // name, series, samples, type
						got = ""
					}
				}
			}
			if got != tc.want {
				t.Errorf("the rate is %q, want %q", got, tc.want)
			}
		})
	}
}

// TestScrapes: the cost of scrapes is that of the last minute, and in all.
func TestScrapes(t *testing.T) {
	var v View
	for i := range 100 {
		r := read(float64(2*i), nil)
		r.Own[scrapeCount], r.Own[scrapeSeconds] = float64(i), 0.01*float64(i)
		if i > 50 {
			r.Own[scrapeSeconds] = 0.5 + 0.02*float64(i-50)
		}
		r.Own[cpuSeconds] = 0.1 * float64(i)
		v.Add(r)
	}
	if got := v.scrapes(); got != "Scrapes  30 in the last 1m, 20ms each; 99 in all, 15ms each" {
		t.Error(got)
	}
	if got := v.cost(); !strings.Contains(got, "CPU 5.0%") {
		t.Error(got)
	}
	if len(v.past) > 40 {
		t.Errorf("%d readings are kept", len(v.past))
	}
	again := read(300, nil)
	again.Overview.Started++
	v.Add(again)
	if got := v.scrapes(); got != "Scrapes  none yet" {
		t.Errorf("after a restart: %s", got)
	}
}

// full is a view with more of everything than there is room for, and names that try to do
// something to the terminal.
func full() *View {
	v := &View{Source: "http://x:1", Every: time.Second}
	for i := range 2 {
		r := read(float64(2*i), nil)
		for p := range 9 {
			r.Overview.Pools = append(r.Overview.Pools, status.Pool{Name: fmt.Sprintf("pool\x1b[%d", p), Dir: "/dev/shm/温\n度", Up: p > 0})
			r.Overview.Problems = append(r.Overview.Problems,
				status.Problem{Severity: "error", Text: "bad\x1b]0;title\a " + strings.Repeat("long ", 60)})
		}
		for n := range 90 {
			total := status.Number(n * i)
			r.Families = append(r.Families, status.Family{
				Name: fmt.Sprintf("温度_%d_\u009b2J", n), Type: "counter", Help: "a\x1bc\nb",
				Series: n, Total: &total, Own: n%2 == 1,
			})
			r.Workers.Items = append(r.Workers.Items,
				status.Worker{ID: fmt.Sprintf("%d\r\u202e", n), Alive: n%3 > 0, Changed: 1990, Created: 1000, Pool: "p\x1b"})
		}
		r.Workers.Total = 90
		v.Add(r)
	}
	return v
}

// TestFrameFits: whatever the size of the terminal, the frame is that size, and nothing in it
// can be more than shown.
func TestFrameFits(t *testing.T) {
	v := full()
	now := start.Add(5 * time.Second)
	for _, state := range []string{"all is well", "lost", "paused", "help"} {
		switch state {
		case "lost":
			v.Lost(errors.New("connection\x1b refused"), now)
		case "paused":
			v.Paused = true
		case "help":
			v.Help = true
		}
		for height := 1; height < 70; height++ {
			for _, width := range []int{1, 2, 9, 10, 20, 39, 40, 79, 80, 81, 100, 133, 200, 500} {
				f := v.Frame(width, height, now)
				if len(f) != height {
					t.Fatalf("%s: %d lines for %d", state, len(f), height)
				}
				for _, line := range f {
					if n := terminal.Columns(line.Text); n > width {
						t.Fatalf("%s: %d columns for %d: %q", state, n, width, line.Text)
					}
					if strings.ContainsFunc(line.Text, func(r rune) bool { return !unicode.IsGraphic(r) }) {
						t.Fatalf("%s: %q", state, line.Text)
					}
				}
			}
		}
	}
}

// TestFrame: what there is no room for is told.
func TestFrame(t *testing.T) {
	v := full()
	text := func(width, height int) string {
		var b strings.Builder
		for _, line := range v.Frame(width, height, start.Add(5*time.Second)) {
			b.WriteString(line.Text + "\n")
		}
		return b.String()
	}
	for _, want := range []string{
		"… 6 more pools", "! and 7 more problems", "FAMILY (", " of 45)", "WORKER (", " of 90)", "q quit",
		`\x1b`,
	} {
		if got := text(80, 24); !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	v.Rows = 3
	got := text(0, 0)
	for _, want := range []string{"FAMILY (3 of 45)", "WORKER (3 of 90)", "温度_88_", "44.0"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "q quit") || strings.Contains(got, "more pools") {
		t.Errorf("plain text is cut, or tells keys:\n%s", got)
	}
	v.Own, v.FamilyOrder = true, 1
	if got := text(0, 0); !strings.Contains(got, "FAMILY (3 of 90)") || !strings.Contains(got, "温度_89_") {
		t.Errorf("own families do not show:\n%s", got)
	}
	v.WorkerOrder = 4
	if got := v.WorkersQuery().Encode(); got != "limit=500&sort=id" {
		t.Error(got)
	}
	if len(workerSorts) != len(WorkerOrders) {
		t.Error("not every order has its parameter")
	}
}

// TestScroll: the table with the focus shows other rows, never beyond its ends.
func TestScroll(t *testing.T) {
	v := full()
	text := func() string {
		var b strings.Builder
		for _, line := range v.Frame(100, 40, start.Add(5*time.Second)) {
			b.WriteString(line.Text + "\n")
		}
		return b.String()
	}
	shows := func(what string, want ...string) {
		t.Helper()
		got := text()
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Errorf("%s: no %q in\n%s", what, w, got)
			}
		}
	}
	shows("at the start", "▸ FAMILY (", "温度_88_")
	v.Scroll(1, 0)
	shows("one row", "▸ FAMILY (2–", "温度_86_")
	if strings.Contains(text(), "温度_88_") {
		t.Error("the first row is still there")
	}
	v.Scroll(0, 100)
	shows("the end", "–45 of 45)")
	v.Scroll(0, -100)
	v.ScrollTo(true)
	shows("the end", "–45 of 45)")
	v.ScrollTo(false)
	v.OnWorkers = true
	v.Scroll(3, 0)
	shows("the workers", "▸ WORKER (4–", "FAMILY (")
	for _, key := range "度_4x" {
		v.Type(key)
	}
	v.Type(terminal.KeyBackspace)
	shows("a filter", "温度_4_", "温度_40_", "WORKER (none matches)")
	if strings.Contains(text(), "温度_88_") {
		t.Error("the filter lets through what has no such name")
	}
	if got := v.WorkersQuery().Get("search"); got != "度_4" {
		t.Errorf("the daemon is asked for %q", got)
	}
	v.Typing = true
	v.Type(terminal.KeyEscape)
	shows("no filter", "温度_88_")
}

// TestOutputsAndProcesses: what fails is at the top, and a worker's process is told of.
func TestOutputsAndProcesses(t *testing.T) {
	v := &View{Source: "http://localhost:9500", Every: 2 * time.Second}
	r := read(0, nil)
	r.Outputs = []status.Output{
		{Name: "carbon", Type: "graphite", Target: "carbon:2003", LastTry: 1990, LastSuccess: 1990, Next: 2005, Samples: 182, Bytes: 2048},
		{Name: "batch", Type: "otlp", Target: "http://x/v1/metrics", LastTry: 1999, LastSuccess: 1900, Next: 2001, Failures: 3},
		{Name: "new", Type: "textfile", Target: "/a.prom"},
	}
	r.Workers.Items = []status.Worker{
		{ID: "a1", Alive: true, Process: &status.Process{Pid: 4711, CPUSeconds: 0.25, ResidentBytes: 32 << 20}},
		{ID: "a2", Alive: true, Process: &status.Process{Pid: 4712, CPUSeconds: 125, ResidentBytes: 1 << 30}},
		{ID: "a3"},
	}
	v.Add(r)
	var lines []string
	for _, line := range v.Frame(0, 0, start) {
		lines = append(lines, strings.Join(strings.Fields(line.Text), " "))
	}
	for _, want := range []string{
		"batch otlp failed 3 times 1m40s 1s 0 0B http://x/v1/metrics", "carbon graphite ok 10s 5s 182 2.0K carbon:2003",
		"new textfile not yet - - 0 0B /a.prom",
		"a1 alive - - 250ms 32M 0 0 0B 0B 4711", "a2 alive - - 2m5s 1.0G 0 0 0B 0B 4712", "a3 dead - - - - 0 0 0B 0B -",
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("no line %q in\n%s", want, strings.Join(lines, "\n"))
		}
	}
	if i, j := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "batch") }),
		slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "carbon") }); i > j {
		t.Error("what fails is not at the top")
	}
}

// TestEighty: at 80 columns what matters is there, and whole.
func TestEighty(t *testing.T) {
	v := &View{Source: "http://localhost:9500", Every: 2 * time.Second}
	for i := range 2 {
		r := read(float64(2*i), nil)
		total := status.Number(100 * i)
		r.Families = []status.Family{{
			Name: "http_request_duration_seconds", Type: "histogram", Total: &total, Series: 120, Samples: 1920,
			Help: "Time to answer.",
		}}
		r.Workers.Items = []status.Worker{{
			ID: "1234567", Alive: true, KnownBy: "lease", Files: 4, Entries: 1200, UsedBytes: 1 << 20,
			SizeBytes: 2 << 20, Changed: 1999, Created: 1000, Pool: "webshop",
		}}
		r.Workers.Total = 1
		r.Overview.Pools = []status.Pool{{
			Name: "webshop", Dir: "/dev/shm/webshop", Up: true,
			Archive: status.Archive{State: "open", Bytes: 65536},
		}}
		v.Add(r)
	}
	var got strings.Builder
	for _, line := range v.Frame(80, 24, start.Add(5*time.Second)) {
		got.WriteString(strings.TrimRight(line.Text, " ") + "\n")
	}
	for _, want := range []string{"http_request_duration_seconds", "50.0", "histogram", "1234567", "alive", "/dev/shm/webshop", "h help"} {
		if !strings.Contains(got.String(), want) {
			t.Errorf("no %q in\n%s", want, got.String())
		}
	}
}

func TestWords(t *testing.T) {
	for got, want := range map[string]string{
		rate(0): "0", rate(0.001): "<0.01", rate(1): "1.00", rate(12.34): "12.3", rate(191.4): "191", rate(99999): "99999",
		rate(100000): "100k", rate(2.5e6): "2.50M",
		size(0): "0B", size(1023): "1023B", size(1024): "1.0K", size(832 << 10): "832K", size(1000 << 10): "1.0M", size(3 << 50): "3.0P",
		span(0): "0s", span(61 * time.Second): "1m1s", span(2 * time.Hour): "2h", span(25 * time.Hour): "1d1h",
		seconds(0.00018): "0.18ms", seconds(0.32): "320ms", seconds(2.5): "2.5s",
		age(0, 10): "-", age(20, 10): "0s",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestManyPools: of a hundred pools those with problems are shown first, one that has gone says when
// it will be removed, and the filter finds a pool by its labels.
func TestManyPools(t *testing.T) {
	v := &View{Source: "http://x:1", Every: time.Second}
	r := read(0, nil)
	for i := range 100 {
		r.Overview.Pools = append(r.Overview.Pools, status.Pool{
			Name: fmt.Sprintf("app-%d", i), Dir: fmt.Sprintf("/run/apps/%d", i),
			Source: "pattern", Up: true, Labels: map[string]string{"team": fmt.Sprintf("team%d", i%7)},
		})
	}
	r.Overview.Pools[42].Trouble, r.Overview.Pools[42].Problems = "warning", 1
	r.Overview.Pools[77].Trouble, r.Overview.Pools[77].Problems = "error", 1
	r.Overview.Pools[77].Vanished, r.Overview.Pools[77].Until = 1, r.FamiliesAt+30
	v.Add(r)
	text := func() string {
		var all []string
		for _, line := range v.Frame(160, 40, r.At) {
			all = append(all, line.Text)
		}
		return strings.Join(all, "\n")
	}
	got := text()
	bad, worse, fine := strings.Index(got, "app-42 "), strings.Index(got, "app-77 "), strings.Index(got, "app-0 ")
	if worse < 0 || bad < worse || fine < bad || !strings.Contains(got, "gone; removed in 30s") || !strings.Contains(got, "more pools") ||
		!strings.Contains(got, "pattern") {
		t.Errorf("got\n%s", got)
	}
	v.Filter = "team3"
	if got := text(); strings.Contains(got, "app-0 ") || !strings.Contains(got, "app-3 ") {
		t.Errorf("filtered\n%s", got)
	}
}
