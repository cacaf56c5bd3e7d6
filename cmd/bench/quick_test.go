package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) != "" {
		if err := serveTrivial(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// TestQuick runs the whole benchmark on tiny shapes, so that it cannot rot. How fast
// anything was does not matter here.
func TestQuick(t *testing.T) {
	daemon := filepath.Join(t.TempDir(), "aggregatord")
	if out, err := exec.Command("go", "build", "-o", daemon, "aggregatord/cmd/aggregatord").CombinedOutput(); err != nil {
		t.Fatalf("build the daemon: %v\n%s", err, out)
	}
	base := t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	var progress strings.Builder
	r, err := run(ctx, options{quick: true, layout: py16.name, daemon: daemon, python: "/usr/bin/python3", args: processDisable, dir: base},
		&progress)
	if err != nil {
		t.Fatalf("%v\n%s", err, progress.String())
	}
	checkReport(t, r)
	if left, err := os.ReadDir(base); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// checkReport checks that a report has the rows that the performance page speaks of, with
// numbers in them.
func checkReport(t *testing.T, r *report) {
	t.Helper()
	var text, markdown bytes.Buffer
	if err := errors.Join(r.print(&text, r.heading(), false), r.print(&markdown, r.heading(), true)); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", text.Bytes())
	rows := map[string]row{}
	for _, rw := range r.rows {
		rows[rw.shape+"/"+rw.what] = rw
		if rw.value == "" || strings.HasPrefix(rw.value, "-") || strings.HasPrefix(rw.value, "0.00") &&
			!strings.HasPrefix(rw.what, "one core's share") {
			t.Errorf("%s: %s is %q", rw.shape, rw.what, rw.value)
		}
	}
	tiny, dead := "tiny (4 × 400)", "tiny-dead (60 dead pids × 98)"
	for _, want := range []struct{ shape, what string }{
		{tiny, "floor: load every value once, one core"},
		{tiny, "floor, plain: load on one core + format + GET"},
		{tiny, "plain, all changed"},
		{tiny, "plain, all changed, 8 scrapers at once, until all have it"},
		{tiny, "gzip, 5 % of families changed"},
		{tiny, "RssAnon after 50 scrapes"},
		{tiny, "allocations of a scrape, gzip"},
		{dead, "open, read, hash and look up every key"},
		{dead, "cold start to the first response"},
		{dead, "from the start until all are folded"},
		{"tiny-deaths (100 a second × 20)", "scrape: slowest"},
		{"tiny-archive (5000 series)", "first scrape"},
		{"tiny-archive (5000 series)", "RssAnon three seconds later"},
	} {
		rw, ok := rows[want.shape+"/"+want.what]
		if !ok || strings.Contains(rw.value+rw.ratio, "?") {
			t.Errorf("%s: %s: row %+v, %v", want.shape, want.what, rw, ok)
		}
		for _, out := range []string{text.String(), markdown.String()} {
			if !strings.Contains(out, want.what) {
				t.Errorf("%s: %s is not printed", want.shape, want.what)
			}
		}
	}
	if len(r.targets) < 10 {
		t.Errorf("%d targets", len(r.targets))
	}
	for _, target := range r.targets {
		if known := target.verdict != unmeasured; known == (target.measured == "") {
			t.Errorf("target %+v", target)
		}
	}
}

// TestCheck is about the comparison that everything rests on: it must see what is wrong.
func TestCheck(t *testing.T) {
	const floor = "# HELP a_total A.\n# TYPE a_total counter\na_total{x=\"1\"} 5\na_total{x=\"2\"} 0.1\n"
	own := "# HELP aggregatord_files F.\n# TYPE aggregatord_files gauge\naggregatord_files 3\n"
	for _, tc := range []struct {
		name, daemon string
		ok           bool
	}{
		{"same", floor + own, true},
		{"rounded_otherwise", strings.Replace(floor, "0.1", "0.10000000000000002", 1), true},
		{"own_first", own + floor, true},
		{"other_value", strings.Replace(floor, "5", "6", 1), false},
		{"other_label", strings.Replace(floor, `x="2"`, `x="3"`, 1), false},
		{"line_missing", strings.TrimSuffix(floor, "a_total{x=\"2\"} 0.1\n"), false},
		{"line_too_many", floor + "b 1\n", false},
		{"other_help", strings.Replace(floor, "A.", "B.", 1), false},
		{"no_number", strings.Replace(floor, " 5\n", " five\n", 1), false},
		{"empty", "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := check([]byte(tc.daemon), []byte(floor)); (err == nil) != tc.ok {
				t.Errorf("check says %v", err)
			}
		})
	}
}

// TestFloor checks that the floor merges what is in the files, on one core and on two.
func TestFloor(t *testing.T) {
	d := generated(t, t.TempDir(), named(t, "tiny"), py16)
	f := newFloor(d)
	f.load()
	_, witness := d.schema.witness()
	if got := f.cells[witness.first]; got != d.total {
		t.Errorf("the sum is %v, want %v", got, d.total)
	}
	before := f.integralShare()
	if before < .84 || before > .96 {
		t.Errorf("%.2f of the merged values are whole numbers", before)
	}
	one := string(f.format())
	f.loadTwo()
	if err := check(f.format(), []byte(one)); err != nil {
		t.Errorf("two cores: %v", err)
	}
	d.touch(1)
	f.load()
	if err := check(f.format(), []byte(one)); err == nil {
		t.Error("a touch of everything changes nothing")
	}
}

// TestStats holds what the numbers of the report are made of.
func TestStats(t *testing.T) {
	for _, tc := range []struct {
		of   []float64
		q    float64
		want float64
	}{
		{[]float64{3, 1, 2}, .5, 2},
		{[]float64{4, 1, 2, 3}, .5, 2.5},
		{[]float64{7}, .9, 7},
		{[]float64{1, 2}, 1, 2},
	} {
		if got := quantile(tc.of, tc.q); got != tc.want {
			t.Errorf("quantile(%v, %v) = %v, want %v", tc.of, tc.q, got, tc.want)
		}
	}
	for seconds, want := range map[float64]string{.0000123: "12.3 µs", .00123: "1.23 ms", .25: "250 ms", 12.34: "12.3 s", nan: "?"} {
		if got := duration(seconds); got != want {
			t.Errorf("duration(%v) = %q, want %q", seconds, got, want)
		}
	}
	// Each takes part in its rounds, in turns.
	var order strings.Builder
	m := func(name string, rounds int) *measurement {
		return &measurement{name: name, rounds: rounds, run: func() (float64, error) {
			order.WriteString(name)
			return float64(time.Second), nil
		}}
	}
	a, b := m("a", 0), m("b", 1)
	if err := inTurns(context.Background(), 3, a, b); err != nil || order.String() != "abaa" || len(a.samples) != 3 || len(b.samples) != 1 {
		t.Errorf("order %s, %d and %d samples, %v", order.String(), len(a.samples), len(b.samples), err)
	}
}
