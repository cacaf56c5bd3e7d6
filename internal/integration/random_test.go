package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"
)

// seed returns the seed of the random programs: AGGREGATORD_SEED, to repeat a run, or a new one.
func seed(t *testing.T) uint64 {
	t.Helper()
	n := uint64(time.Now().UnixNano())
	if s := os.Getenv("AGGREGATORD_SEED"); s != "" {
		var err error
		if n, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("AGGREGATORD_SEED: %v", err)
		}
	}
	t.Logf("to repeat: AGGREGATORD_SEED=%d", n)
	return n
}

// Texts that something on the way from a worker to a reader may stumble over.
var (
	oddTexts = []string{
		"", " ", "plain", `"`, `\`, `\\n`, "\n", "a\nb", "trailing\\", `quote " in the middle`, "{}", `a="b",c="d"`, "#", " # {x=\"1\"} 2",
		"=", ",", "}", "NaN", "crème brûlée", "日本語", "😀", "\u00a0", "\u2028", "\u0001", "\r", "\t", "null", "[1]", "\u007f", "\ufeffbom",
		"very long " + string(slices.Repeat([]byte("0123456789"), 300)),
	}
	oddHelps = []string{
		"Plain.", `With "quotes".`, `Back\slash.`, `Ends in \`, "Two\nlines.", `\n is not a new line`, "Prix en €.", "# HELP", "{",
		"tab\there", "0",
	}
	labelNames = []string{"a", "b", "method", "_x", "Upper", "x1", "job", "instance", "name", "mode", "le_", "help"}
)

// pick returns one element.
func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

// randomProgram makes a program. In a strict one nothing is observed that OpenMetrics has no
// place for: counters and sums that are negative or not a number.
func randomProgram(r *rand.Rand, strict bool) program {
	// The client writes a counter without labels even if nobody touches it: there is
	// something to compare, whatever follows.
	p := program{Metrics: []declared{{Name: "always_total", Type: "counter", Help: "Always there."}}}
	types := []string{"counter", "counter", "histogram", "histogram", "summary", "gauge", "gauge", "gauge"}
	modes := []string{"all", "liveall", "min", "livemin", "max", "livemax", "sum", "livesum"}
	for i := range 3 + r.IntN(10) {
		m := declared{
			Name: fmt.Sprintf("m%d_%s", i, pick(r, []string{"x", "seconds", "Total_things", "a_b_c", "bucket_", "sum_of"})),
			Type: pick(r, types), Help: pick(r, oddHelps),
		}
		for _, at := range r.Perm(len(labelNames))[:r.IntN(4)] {
			m.Labels = append(m.Labels, labelNames[at])
		}
		switch m.Type {
		case "gauge":
			m.Mode = pick(r, modes)
		case "histogram":
			if r.IntN(2) == 0 {
				m.Buckets = randomBuckets(r, strict)
			}
		case "counter":
			if r.IntN(2) == 0 {
				m.Name += "_total"
			}
		}
		p.Metrics = append(p.Metrics, m)
	}
	// Few label sets for each metric, so that the workers' series meet.
	sets := map[string][][]string{}
	for _, m := range p.Metrics {
		for range 1 + r.IntN(4) {
			var set []string
			for range m.Labels {
				set = append(set, pick(r, oddTexts))
			}
			sets[m.Name] = append(sets[m.Name], set)
		}
	}
	for i := range 2 + r.IntN(4) {
		w := worker{Busy: r.IntN(4) == 0}
		if r.IntN(3) == 0 {
			// No underscore: the client's collector takes what follows one for no part of the id.
			w.ID = fmt.Sprintf("worker-%d.%d", i, r.IntN(10))
		}
		for _, m := range p.Metrics {
			if m.Type == "histogram" && r.IntN(4) == 0 {
				if w.Buckets == nil {
					w.Buckets = map[string][]string{}
				}
				w.Buckets[m.Name] = randomBuckets(r, strict)
			}
		}
		for range 5 + r.IntN(60) {
			m := pick(r, p.Metrics)
			w.Steps = append(w.Steps, randomStep(r, m, pick(r, sets[m.Name]), strict))
		}
		p.Workers = append(p.Workers, w)
	}
	return p
}

// randomBuckets makes the upper bounds of a histogram, deltas.
func randomBuckets(r *rand.Rand, strict bool) []string {
	bounds := []string{
		"1e-05", "0.001", "0.25", "1", "1.5", "2", "10", "100.125", "1e5", "999999", "1e6", "1234567.5", "2.5e7", "1e10",
		"1.5e15", "1e16", "1e22", "1e300",
	}
	if !strict {
		bounds = append([]string{"-1e6", "-10", "-0.5", "0"}, bounds...)
	}
	var out []string
	for _, b := range bounds {
		if r.IntN(3) == 0 {
			out = append(out, b)
		}
	}
	if len(out) == 0 || r.IntN(2) == 0 {
		out = append(out, "inf")
	}
	return out
}

// randomStep makes one call of a method of m. Whatever is added up is a multiple of 1/8, not
// too big, or special: floats that cancel each other would leave the order of addition as
// the only difference there is to see.
func randomStep(r *rand.Rand, m declared, labels []string, strict bool) step {
	eighths := func(low, high int) string {
		return strconv.FormatFloat(float64(low+r.IntN(high-low))/8, 'g', -1, 64)
	}
	s := step{Metric: m.Name, Labels: labels}
	if r.IntN(10) == 0 {
		s.Op = "touch"
		return s
	}
	switch m.Type {
	case "counter":
		s.Op, s.Value = "inc", eighths(0, 800)
		switch r.IntN(8) {
		case 0:
			s.Value = pick(r, []string{"0.1", "1e300", "5e-324", "1e15", "123456789.125", "1e21", "1e-7"})
		case 1:
			if !strict {
				s.Value = "inf"
			}
		}
	case "histogram", "summary":
		s.Op, s.Value = "observe", eighths(0, 8000)
		switch r.IntN(8) {
		case 0:
			s.Value = pick(r, []string{"0", "1e6", "1e-5", "0.3", "1e16", "inf"})
		case 1:
			if !strict {
				s.Value = pick(r, []string{"nan", "-inf", "-1.5", "-0.0"})
			}
		}
	case "gauge":
		s.Op, s.Value = pick(r, []string{"set", "set", "inc", "dec"}), eighths(-800, 800)
		if r.IntN(3) == 0 {
			s.Op = "set"
			s.Value = pick(r, []string{"inf", "-inf", "-0.0", "0", "1e15", "-1e15", "1e308", "5e-324", "0.1", "1e6", "123456789", "1.5e-7"})
			switch m.Mode {
			case "all", "liveall":
				s.Value = pick(r, []string{s.Value, "nan"})
			case "sum", "livesum":
				s.Value = pick(r, []string{"inf", "-0.0", "0.5", "nan", "1048576"})
			}
		}
	}
	return s
}

// TestRandomPrograms lets random workers write, kills some of them, and compares. What
// busy workers do ends with their kill: nobody writes while the two sides read.
func TestRandomPrograms(t *testing.T) {
	t.Parallel()
	python(t, "prometheus_client")
	base := seed(t)
	for round := range uint64(8) {
		// Every fourth round is not strict, and of these every second is archived.
		strict, archived := round%4 != 3, (round+round/4)%2 == 0
		t.Run(fmt.Sprintf("round=%d/strict=%v/archive=%v", round, strict, archived), func(t *testing.T) {
			t.Parallel()
			randomRound(t, rand.New(rand.NewPCG(base, round)), strict, archived)
		})
	}
}

func randomRound(t *testing.T, r *rand.Rand, strict, archived bool) {
	program := randomProgram(r, strict)
	p := newParity(t, archived)
	var d *daemon
	early := r.IntN(2) == 0
	if early {
		d = p.serve()
	}
	w := startWorkers(t, p.dir, program)
	for i, worker := range program.Workers {
		if worker.Busy {
			if d != nil {
				if _, err := d.text(); err != nil {
					t.Errorf("scrape while a worker writes: %v", err)
				}
			}
			w.processes[i].kill()
		}
	}
	if !early {
		d = p.serve()
	}
	// The daemon promises that what is in the directory when a scrape begins is in its
	// answer, and that a dead process's live gauges are not: no waiting here.
	check := func(when string) {
		t.Helper()
		if err := p.agreeAlive(d, strict, w.alive()); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	check("workers alive")
	for i, worker := range program.Workers {
		switch {
		case worker.Busy || r.IntN(3) == 0:
		case r.IntN(2) == 0:
			w.processes[i].kill()
		default:
			w.finish(i)
		}
	}
	check("some dead")
	for i := range program.Workers {
		w.processes[i].kill()
	}
	check("all dead")
	p.folded(d)
	check("all archived")
	d.stop()
}
