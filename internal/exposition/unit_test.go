package exposition

import (
	"slices"
	"strings"
	"testing"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

func TestUnits(t *testing.T) {
	snap := snapshot(
		fam{name: "read_bytes", typ: metric.Counter, metrics: []met{total(1)}},
		fam{name: "old_bytes", typ: metric.Counter, metrics: []met{value(1)}},
		fam{name: "took_seconds", typ: metric.Histogram, metrics: []met{buckets(1, 2, 3, 4)}},
		fam{name: "size", typ: metric.Gauge, metrics: []met{value(5)}},
		fam{name: "bytes", typ: metric.Gauge, metrics: []met{value(6)}},
	)
	for i, f := range snap.Layout.Families {
		snap.Layout.Families[i].Unit = map[bool]string{true: "seconds", false: "bytes"}[f.Name == "took_seconds"]
	}
	var documents []pythonDocument
	for _, f := range []Format{{Kind: OpenMetrics001}, {Kind: OpenMetrics100}} {
		out, omissions := encode(f, snap)
		if left := leftOut(omissions); len(left) > 0 {
			t.Errorf("%v left out", left)
		}
		var units []string
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "# UNIT") {
				units = append(units, line)
			}
		}
		// In OpenMetrics a counter without _total is of no type, and may have a unit.
		want := []string{"# UNIT old_bytes bytes\n", "# UNIT read_bytes bytes\n", "# UNIT took_seconds seconds\n"}
		if !slices.Equal(units, want) {
			t.Errorf("%v: units %q, want %q", f, units, want)
		}
		documents = append(documents, pythonDocument{"openmetrics", out, expected(t, f, snap)})
	}
	checkPython(t, documents)
	if out, _ := encode(Format{}, snap); strings.Contains(out, "UNIT") {
		t.Errorf("a unit in the classic text:\n%s", out)
	}
	out, _ := encode(Format{Kind: Protobuf}, snap)
	for _, mf := range decodeProtobuf(t, Format{Kind: Protobuf}, out) {
		want := map[string]string{"read_bytes_total": "bytes", "old_bytes": "bytes", "took_seconds": "seconds"}[mf.GetName()]
		if mf.GetUnit() != want {
			t.Errorf("%s has unit %q, want %q", mf.GetName(), mf.GetUnit(), want)
		}
	}
	// A layout in which nothing but the unit has changed is another one.
	e := &Encoder{}
	e.Append(nil, Format{Kind: OpenMetrics100}, Filter{}, snap)
	other := &view.Snapshot{
		Layout: &view.Layout{Families: slices.Clone(snap.Layout.Families), Points: snap.Layout.Points},
		Values: snap.Values,
	}
	for i := range other.Layout.Families {
		other.Layout.Families[i].Unit = ""
	}
	if out := string(e.Append(nil, Format{Kind: OpenMetrics100}, Filter{}, other)); strings.Contains(out, "UNIT") {
		t.Errorf("a unit that is gone:\n%s", out)
	}
}

// TestAbsentMetrics leaves out metrics of every type whose values are absent.
func TestAbsentMetrics(t *testing.T) {
	absent := func(m met) met {
		m.points = slices.Clone(m.points)
		for i := range m.points {
			m.points[i].value = view.Absent
		}
		return m
	}
	there := snapshot(
		fam{name: "c", typ: metric.Counter, metrics: []met{total(1, "l", "b")}},
		fam{name: "h", typ: metric.Histogram, metrics: []met{buckets(1, 2, 3, 4, "l", "b")}},
		fam{name: "s", typ: metric.Summary, metrics: []met{summary(1, 2, "l", "b")}},
	)
	sparse := snapshot(
		fam{name: "c", typ: metric.Counter, sparse: true, metrics: []met{absent(total(1, "l", "a")), total(1, "l", "b")}},
		fam{name: "gone", typ: metric.Counter, sparse: true, metrics: []met{absent(total(1, "l", "a"))}},
		fam{
			name: "h", typ: metric.Histogram, sparse: true,
			metrics: []met{absent(buckets(1, 2, 3, 4, "l", "a")), buckets(1, 2, 3, 4, "l", "b")},
		},
		fam{name: "s", typ: metric.Summary, sparse: true, metrics: []met{absent(summary(1, 2, "l", "a")), summary(1, 2, "l", "b")}},
	)
	for _, f := range []Format{{}, {Text100, Values}, {Kind: OpenMetrics001}, {Kind: OpenMetrics100}, {Kind: Protobuf}, {Kind: JSON}} {
		want, _ := encode(f, there)
		got, _ := encode(f, sparse)
		// A family of which nothing is served has a head at most.
		var kept []string
		for line := range strings.Lines(got) {
			if !strings.HasPrefix(line, "# HELP gone") && !strings.HasPrefix(line, "# TYPE gone") {
				kept = append(kept, line)
			}
		}
		if got := strings.Join(kept, ""); got != want {
			t.Errorf("%v: got:\n%s\nwant:\n%s", f, got, want)
		}
	}
}
