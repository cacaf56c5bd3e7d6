package output

import (
	"encoding/json"
	"io"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"aggregatord/internal/metric"
	"aggregatord/internal/output/outputtest"
	"aggregatord/internal/view"
)

// bridge pushes the samples of standard input by the Python client's own bridge.
const bridge = `
import json, sys
from prometheus_client.bridge.graphite import GraphiteBridge
from prometheus_client.samples import Sample
class Metric: pass
class Registry:
    def collect(self):
        for s in json.load(sys.stdin):
            m = Metric()
            m.samples = [Sample(s["name"], s["labels"], float(s["value"]))]
            yield m
GraphiteBridge((sys.argv[1], int(sys.argv[2])), registry=Registry(), tags=sys.argv[4] == "true").push(prefix=sys.argv[3])
`

// carbon takes one connection and returns its lines without their times, sorted.
func carbon(t *testing.T) (address string, lines func() []string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	text := make(chan string, 1)
	go func() {
		defer close(text)
		defer l.Close()
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		b, _ := io.ReadAll(conn)
		text <- string(b)
	}()
	return l.Addr().String(), func() []string {
		var out []string
		for line := range strings.Lines(<-text) {
			i := strings.LastIndexByte(line, ' ')
			out = append(out, line[:i])
		}
		slices.Sort(out)
		return out
	}
}

// TestGraphiteAsPython: the lines are those that the Python client's bridge would write.
func TestGraphiteAsPython(t *testing.T) {
	python := "/usr/bin/python3"
	if exec.Command(python, "-c", "import prometheus_client").Run() != nil {
		missing(t, "Python's prometheus_client (apt-get install python3-prometheus-client)")
	}
	type sample struct {
		Name   string            `json:"name"`
		Labels map[string]string `json:"labels"`
		Value  string            `json:"value"`
	}
	snap := outputtest.All()
	values := outputtest.Samples(snap)
	var samples []sample
	eachSample(snap.Layout, func(_ int, name string, labels []metric.Label) {
		v, ok := values[outputtest.Series(name, labels)]
		if !ok {
			return
		}
		s := sample{Name: name, Labels: map[string]string{}, Value: string(metric.AppendValue(nil, v))}
		for _, l := range labels {
			s.Labels[l.Name] = l.Value
		}
		samples = append(samples, s)
	})
	for _, v := range []string{"1e15", "1e16", "123456789012345678", "1e-4", "0.00001", "-1e300", "0.1"} {
		samples = append(samples, sample{Name: "number", Labels: map[string]string{"v": v}, Value: v})
	}
	input, err := json.Marshal(samples)
	if err != nil {
		t.Fatal(err)
	}
	numbers := outputtest.Family{Name: "number", Type: metric.Gauge}
	for _, n := range []struct {
		label string
		v     float64
	}{
		{"-1e300", -1e300},
		{"0.00001", 0.00001},
		{"0.1", 0.1},
		{"123456789012345678", 123456789012345678},
		{"1e-4", 1e-4},
		{"1e15", 1e15},
		{"1e16", 1e16},
	} {
		numbers.Metrics = append(numbers.Metrics, outputtest.Metric{Labels: []string{"v", n.label}, Values: []float64{n.v}})
	}
	for _, spec := range []GraphiteSpec{{}, {Prefix: "servers.web1"}, {Tags: true}, {Tags: true, Prefix: "p"}} {
		address, lines := carbon(t)
		host, port, _ := net.SplitHostPort(address)
		cmd := exec.Command(python, "-c", bridge, host, port, spec.Prefix, map[bool]string{true: "true", false: "false"}[spec.Tags])
		cmd.Stdin = strings.NewReader(string(input))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		want := lines()

		address, lines = carbon(t)
		spec.Address = address
		g := newGraphite(&spec)
		out, err := g.push(t.Context(), &frame{parts: []*view.Snapshot{snap, outputtest.Snapshot(numbers)}})
		if err != nil {
			t.Fatal(err)
		}
		if got := lines(); !slices.Equal(got, want) || len(got) != out.samples || len(got) < 30 {
			t.Errorf("%+v: %d samples\n%s\nwant\n%s", spec, out.samples, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

// TestGraphiteFailures: a receiver that resets or reads nothing.
func TestGraphiteFailures(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conns := make(chan net.Conn, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		conns <- conn
	}()
	push := func(big int) error {
		f := outputtest.Family{Name: "jobs", Type: metric.Counter}
		for range big {
			f.Metrics = append(f.Metrics, outputtest.Metric{Labels: []string{"x", strings.Repeat("x", 1000)}, Values: []float64{1}})
		}
		_, err := Once(t.Context(), Spec{Name: "a", Graphite: &GraphiteSpec{Address: l.Addr().String()}},
			outputtest.NewSource(outputtest.Snapshot(f)), Options{})
		return err
	}
	failed := make(chan error)
	go func() { failed <- push(50_000) }() // more than fits into the buffers of a connection
	conn := (<-conns).(*net.TCPConn)
	conn.SetLinger(0) //nolint:errcheck // a test
	conn.Close()
	if err := <-failed; err == nil || !strings.Contains(err.Error(), "connection reset by peer") &&
		!strings.Contains(err.Error(), "broken pipe") {
		t.Error(err)
	}
	l.Close()
	if err := push(1); err == nil || !strings.Contains(err.Error(), "nothing listens there") {
		t.Error(err)
	}
}
