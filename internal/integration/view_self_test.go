package integration

import (
	"math"
	"strings"
	"testing"
)

// The comparison is what every other test relies on, so it is tested to see what it
// should see.
func TestDifferences(t *testing.T) {
	text := func(lines ...string) view {
		t.Helper()
		v, err := parseText([]byte(strings.Join(lines, "\n") + "\n"))
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	base := []string{
		"# HELP a_total Things.", "# TYPE a_total counter", `a_total{x="1"} 0.3`,
		"# HELP g Level.", "# TYPE g gauge", "g 0.1",
		"# HELP h Sizes.", "# TYPE h histogram", `h_bucket{le="1.0"} 2`, `h_bucket{le="+Inf"} 3`, "h_sum 7.5", "h_count 3",
	}
	for _, c := range []struct {
		name     string
		old, new string
		want     string
	}{
		{"equal", "", "", ""},
		{"last_bit_of_a_sum", " 0.3", " 0.30000000000000004", ""},
		{"last_bit_of_a_gauge", "g 0.1", "g 0.10000000000000002", "g is 0.10000000000000002, want 0.1"},
		{"bucket", `le="1.0"} 2`, `le="1.0"} 1`, `h_bucket{le="1"} is 1, want 2`},
		{"count", "h_count 3", "h_count 4", "h_count is 4, want 3"},
		{"help", "Things.", "Thing.", `help "Thing.", want "Things."`},
		{"type", "# TYPE g gauge", "# TYPE g counter", "type counter, want gauge"},
		{"label_value", `x="1"`, `x="2"`, `a_total{x="1"} is missing`},
		{"extra_series", `a_total{x="1"} 0.3`, "a_total{x=\"1\"} 0.3\na_total{x=\"2\"} 1", `a_total{x="2"} is served (1)`},
		{"extra_family", "h_count 3", "h_count 3\nextra 1", "family extra is served"},
		{"own_family", "h_count 3", "h_count 3\naggregatord_files 1", ""},
		{"not_a_number", "g 0.1", "g NaN", "g is NaN, want 0.1"},
		{"missing_family", "g 0.1", "# nothing", "family g is missing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := text(strings.Split(strings.Replace(strings.Join(base, "\n"), c.old, c.new, 1), "\n")...)
			err := differences(text(base...), got)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("differences: %v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("differences: %v, want %q in it", err, c.want)
			}
		})
	}
	if !same(math.NaN(), math.NaN()) || near(1, 1+1e-11) || !near(1e20, 1e20+16384) {
		t.Error("same or near is wrong")
	}
}

func TestBoundSpelling(t *testing.T) {
	v := view{"h": {Type: "histogram", Samples: map[string]float64{
		`h_bucket{a=",le=\"7.0\"",le="1e+010"}`: 1, `h_bucket{le="2.0",z="1.0"}`: 2, `h_bucket{le="+Inf"}`: 3, "h_count": 3,
	}}}
	for series := range map[string]bool{
		`h_bucket{a=",le=\"7.0\"",le="1e+10"}`: true, `h_bucket{le="2",z="1.0"}`: true,
		`h_bucket{le="+Inf"}`: true,
	} {
		if math.IsNaN(v.numericBounds().value("h", series)) {
			t.Errorf("numericBounds has no %s: %v", series, v.numericBounds()["h"].Samples)
		}
	}
}

// The Python half: a directory that the client wrote is read by its own collector, and
// an exposition of it by the strict parser.
func TestPythonHalf(t *testing.T) {
	dir := sourceDir(t)
	w := startWorkers(t, dir, program{
		Metrics: []declared{
			{Name: "c", Type: "counter", Help: "Count.", Labels: []string{"l"}},
			{Name: "g", Type: "gauge", Help: "Level.", Mode: "livesum"},
		},
		Workers: []worker{{Steps: []step{
			{Metric: "c", Labels: []string{"x\ny\"\\"}, Op: "inc", Value: "1.5"}, {Metric: "g", Op: "set", Value: "-2"},
		}}},
	})
	for _, flags := range [][]string{nil, {"--proc", dir}, {"--alive", w.id(0)}} {
		v, err := collect(t, dir, flags...)
		if err != nil {
			t.Fatal(err)
		}
		if got := v.value("c", `c_total{l="x\ny\"\\"}`); got != 1.5 {
			t.Errorf("%v: the counter is %v, want 1.5: %v", flags, got, v["c"])
		}
		if got := v.value("g", "g"); got != -2 || v["g"].Mode != "livesum" {
			t.Errorf("%v: the gauge is %v", flags, v["g"])
		}
	}
	w.processes[0].kill()
	for _, flags := range [][]string{{"--proc", dir}, {"--alive"}} {
		v, err := collect(t, dir, flags...)
		if err != nil {
			t.Fatal(err)
		}
		if v["g"] != nil || v["c"] == nil {
			t.Errorf("%v: after the worker's death: %v", flags, v)
		}
	}
	v,
		err := parseStrict(t,
		[]byte("# HELP h H.\n# TYPE h histogram\nh_bucket{le=\"1.0\"} 1\nh_bucket{le=\"+Inf\"} 1\nh_count 1\nh_sum 0.5\n# EOF\n"))
	if err != nil || v.value("h", `h_bucket{le="1.0"}`) != 1 {
		t.Errorf("parseStrict: %v, %v", v, err)
	}
	for name, body := range map[string]string{
		"no_end":            "a 1\n",
		"uncanonical_bound": "# TYPE h histogram\nh_bucket{le=\"1.0\"} 1\nh_bucket{le=\"Inf\"} 1\n# EOF\n",
		"clashing_name":     "# TYPE a counter\na_total 1\n# TYPE a_total gauge\na_total 2\n# EOF\n",
	} {
		if _, err := parseStrict(t, []byte(body)); err == nil {
			t.Errorf("%s: the strict parser accepts it", name)
		}
	}
}
