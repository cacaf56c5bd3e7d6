package readertest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/common/model"

	"aggregatord/internal/exposition"
	"aggregatord/internal/exposition/expositiontest"
	"aggregatord/internal/metric"
	"aggregatord/internal/pool"
	"aggregatord/internal/view"
)

// peer returns the path of a program that tests need beside Go. A missing one skips the test,
// but fails it where everything must be there.
func peer(t *testing.T, path, install string) string {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing: %s", path, install)
		}
		t.Skipf("%s is missing: %s", path, install)
	}
	return path
}

// python is a parser of the Python client: "text", or the strict "openmetrics".
func python(t *testing.T, parser string) Reader {
	return func(body []byte, _ string) (samples []Sample, err error) {
		interpreter := peer(t, "/usr/bin/python3", "apt-get install python3")
		peer(t, "/usr/lib/python3/dist-packages/prometheus_client", "apt-get install python3-prometheus-client")
		input, err := json.Marshal([][2]string{{parser, string(body)}})
		if err != nil {
			return nil, err
		}
		cmd := exec.Command(interpreter, "../testdata/parse.py")
		cmd.Stdin, cmd.Stderr = bytes.NewReader(input), os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return nil, err
		}
		var results []struct {
			Error   string
			Samples [][3]any
		}
		if err := json.Unmarshal(out, &results); err != nil {
			return nil, err
		}
		if results[0].Error != "" {
			return nil, errors.New(results[0].Error)
		}
		for _, row := range results[0].Samples {
			s := Sample{Name: row[0].(string)}
			for name, value := range row[1].(map[string]any) {
				s.Labels = append(s.Labels, metric.Label{Name: name, Value: value.(string)})
			}
			metric.SortLabels(s.Labels)
			if s.Value, err = strconv.ParseFloat(row[2].(string), 64); err != nil {
				return nil, err
			}
			samples = append(samples, s)
		}
		return samples, nil
	}
}

// everything is the view of a directory that has everything at once.
func everything(t *testing.T) *view.Snapshot {
	t.Helper()
	dir := t.TempDir()
	end, err := expositiontest.Write(dir, expositiontest.Files)
	if err != nil {
		t.Fatal(err)
	}
	p := pool.New(pool.Spec{Path: dir}, pool.Options{})
	t.Cleanup(func() {
		if err := errors.Join(p.Close(), end()); err != nil {
			t.Error(err)
		}
	})
	if err := p.Open(); err != nil {
		t.Fatal(err)
	}
	p.Tend(true)
	snap, err := p.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

// What readers ask for.
const (
	prometheus242       = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
	prometheus242Native = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
	prometheus3         = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
	prometheus3Legacy   = "application/openmetrics-text;version=1.0.0;escaping=underscores;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=underscores;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
	prometheus3Values   = "application/openmetrics-text;version=1.0.0;escaping=values;q=0.6,text/plain;version=1.0.0;escaping=values;q=0.4"
	prometheus3Native   = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7," + prometheus3
	victoria            = "text/plain;version=0.0.4;q=1,*/*;q=0.1"

	classicText = "text/plain;version=0.0.4"
	utf8Text    = "text/plain;version=1.0.0;escaping=allow-utf-8"
	dotsText    = "text/plain;version=1.0.0;escaping=dots"
	valuesText  = "text/plain;version=1.0.0;escaping=values"
	openMetrics = "application/openmetrics-text;version=1.0.0"
	utf8OM      = openMetrics + ";escaping=allow-utf-8"
	dotsOM      = openMetrics + ";escaping=dots"
	oldOM       = "application/openmetrics-text;version=0.0.1"
	protobuf    = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
	utf8Proto   = protobuf + ";escaping=allow-utf-8"
	valuesProto = protobuf + ";escaping=values"
)

// A difference is what a format or a reader cannot but change in samples.
type difference struct {
	why    string
	change func(s *Sample)
}

var (
	// Prometheus 3 spells the bounds of what it knows to be a histogram as OpenMetrics does, and
	// so does whoever reads them as numbers.
	boundsAreNumbers = difference{"bounds are read as numbers", func(s *Sample) {
		s.Labels = slices.Clone(s.Labels)
		for i, l := range s.Labels {
			if l.Name == "le" && l.Value == "1e+010" {
				s.Labels[i].Value = "1e+10"
			}
		}
	}}
	noEmptyLabels = difference{"in Prometheus's data model a label without a value is none", func(s *Sample) {
		s.Labels = slices.DeleteFunc(slices.Clone(s.Labels), func(l metric.Label) bool { return l.Value == "" })
	}}
	noNegativeZero = difference{"-0 is read as a whole number", func(s *Sample) {
		s.Value += 0 // which makes 0 of -0
	}}
	totalCounters = difference{"counters are given the suffix _total", func(s *Sample) {
		if s.Name == "logins" || s.Name == "job" {
			s.Name += "_total"
		}
	}}
)

// TestReaders has every reader read a directory that has everything at once, in every format that
// it asks for: the same names, labels and values as the workers wrote, but for what the format
// forces.
func TestReaders(t *testing.T) {
	snap := everything(t)
	legacy, utf8 := Prometheus(model.LegacyValidation), Prometheus(model.UTF8Validation)
	expfmtLegacy, expfmtUTF8 := Expfmt(model.LegacyValidation), Expfmt(model.UTF8Validation)
	prom := []difference{boundsAreNumbers, noEmptyLabels}
	numbers := []difference{boundsAreNumbers}
	for _, test := range []struct {
		reader string
		read   Reader
		accept string
		// want is the format that is served, and escaping how names are spelled in it.
		want, escaping string
		forced         []difference
	}{
		// Whoever takes a text gets one: OpenMetrics has no words for a gauge beside its counter.
		{"prometheus_2.42", legacy, prometheus242, "text-0.0.4", "underscores", prom},
		{"prometheus_2.42_native", legacy, prometheus242Native, "protobuf", "underscores", prom},
		{"prometheus_3", utf8, prometheus3, "text-1.0.0", "allow-utf-8", prom},
		{"prometheus_3_legacy", legacy, prometheus3Legacy, "text-1.0.0", "underscores", prom},
		{"prometheus_3_values", legacy, prometheus3Values, "text-1.0.0", "values", prom},
		{"prometheus_3_native", utf8, prometheus3Native, "protobuf", "underscores", prom},
		{"victoriametrics", VictoriaMetrics, victoria, "text-0.0.4", "underscores", nil},

		// Each format by itself.
		{"prometheus", legacy, classicText, "text-0.0.4", "underscores", prom},
		{"prometheus", utf8, utf8Text, "text-1.0.0", "allow-utf-8", prom},
		{"prometheus", legacy, dotsText, "text-1.0.0", "dots", prom},
		{"prometheus", legacy, valuesText, "text-1.0.0", "values", prom},
		{"prometheus", legacy, openMetrics, "openmetrics-1.0.0", "underscores", prom},
		{"prometheus", legacy, oldOM, "openmetrics-0.0.1", "underscores", prom},
		{"prometheus", legacy, dotsOM, "openmetrics-1.0.0", "dots", prom},
		{"prometheus", utf8, utf8OM, "openmetrics-1.0.0", "allow-utf-8", prom},
		{"prometheus", legacy, protobuf, "protobuf", "underscores", prom},
		{"prometheus", legacy, valuesProto, "protobuf", "values", prom},
		{"prometheus", utf8, utf8Proto, "protobuf", "allow-utf-8", prom},
		{"expfmt", expfmtLegacy, classicText, "text-0.0.4", "underscores", numbers},
		{"expfmt", expfmtUTF8, utf8Text, "text-1.0.0", "allow-utf-8", numbers},
		{"expfmt", expfmtLegacy, protobuf, "protobuf", "underscores", numbers},
		{"expfmt", expfmtUTF8, utf8Proto, "protobuf", "allow-utf-8", numbers},
		{"victoriametrics", VictoriaMetrics, valuesText, "text-1.0.0", "values", nil},
		{"victoriametrics", VictoriaMetrics, utf8Text, "text-1.0.0", "allow-utf-8", nil},
		{"victoriametrics", VictoriaMetrics, openMetrics, "openmetrics-1.0.0", "underscores", nil},
		{"python_text", python(t, "text"), classicText, "text-0.0.4", "underscores", []difference{totalCounters}},
		{"python_strict", python(t, "openmetrics"), openMetrics, "openmetrics-1.0.0", "underscores", []difference{noNegativeZero}},
		{"python_strict", python(t, "openmetrics"), dotsOM, "openmetrics-1.0.0", "dots", []difference{noNegativeZero}},
	} {
		t.Run(fmt.Sprintf("%s/%s/%s", test.reader, test.want, test.escaping), func(t *testing.T) {
			var told []string
			e := &exposition.Encoder{OnReport: func(r exposition.Report) {
				for _, o := range r.Omissions {
					told = append(told, o.String())
				}
			}}
			body, format := e.Encode(nil, nil, exposition.ParseAccept(test.accept), exposition.Filter{}, snap)
			if format.String() != test.want || format.Escaping.String() != test.escaping {
				t.Fatalf("served %v, escaping %v", format, format.Escaping)
			}
			if len(told) > 0 {
				t.Errorf("left out: %q", told)
			}
			samples, err := test.read(body, format.ContentType())
			if err != nil {
				t.Fatalf("%v\n%s", err, body)
			}
			compare(t, samples, expositiontest.Spelled(test.escaping), test.forced)
		})
	}
}

// compare compares what a reader found with what it should have, each difference being needed.
func compare(t *testing.T, samples, wanted []Sample, forced []difference) {
	t.Helper()
	for _, d := range forced {
		needed := false
		wanted = slices.Clone(wanted)
		for i := range wanted {
			before := wanted[i].String()
			d.change(&wanted[i])
			needed = needed || before != wanted[i].String()
		}
		if !needed {
			t.Errorf("nothing differs because %s", d.why)
		}
	}
	for _, line := range expositiontest.Differences(samples, wanted) {
		t.Error(line)
	}
}

// TestPromtool has promtool judge the text. It exits with 3 if it only finds names that it would
// not have chosen.
func TestPromtool(t *testing.T) {
	promtool := peer(t, "/usr/bin/promtool", "apt-get install prometheus")
	snap := everything(t)
	for _, accept := range []string{classicText, dotsText, valuesText} {
		body, _ := new(exposition.Encoder).Encode(nil, nil, exposition.ParseAccept(accept), exposition.Filter{}, snap)
		cmd := exec.Command(promtool, "check", "metrics")
		cmd.Stdin = bytes.NewReader(body)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 3 || strings.Contains(string(out), "error while linting")) {
			t.Errorf("%s: %v\n%s", accept, err, out)
		}
	}
}
