package output

import (
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"aggregatord/internal/metric"
	"aggregatord/internal/relabel"
	"aggregatord/internal/telemetry"
	"aggregatord/internal/view"
)

// The parts of what an output sends.
const (
	ofWorkers = iota // what workers have counted
	ofProcesses
	ofDaemon // its own metrics
	parts
)

// A selection makes of the views of a source what one output sends of them. It belongs to
// one goroutine at a time. A layout that has not changed costs one comparison.
type selection struct {
	match    []*regexp.Regexp
	pools    []string
	external []metric.Label
	relabel  *relabel.Relabeler
	// without begins the names of families that are left out; empty: none is. Of what workers have
	// counted these are the names of the daemon's own, if those are sent, too.
	without string

	in   *view.Layout
	out  *view.Layout
	from []uint32 // nil: out has the values of in, in its order
	// leftOut is how many samples are not sent because others have the same name and labels.
	leftOut int
}

// newSelection compiles what the Spec, which was checked, says about series.
func newSelection(s *Spec, part int) *selection {
	sel := &selection{relabel: relabel.New(s.Relabel)}
	for _, m := range s.Match {
		sel.match = append(sel.match, regexp.MustCompile("^(?:"+m+")$"))
	}
	for name, value := range s.ExternalLabels {
		sel.external = append(sel.external, metric.Label{Name: name, Value: value})
	}
	metric.SortLabels(sel.external)
	if part != ofDaemon {
		sel.pools = s.Pools // the daemon's own metrics are those of no one pool
	}
	switch {
	case part == ofWorkers && s.OwnMetrics:
		sel.without = telemetry.Prefix
	case part == ofProcesses && s.Processes == ProcessesApart && (s.Textfile != nil || s.Pushgateway != nil):
		sel.without = "process_"
	}
	return sel
}

// apply returns the part of the snapshot to send. It takes over the caller's hold on the snapshot.
func (s *selection) apply(snap *view.Snapshot) *view.Snapshot {
	if snap.Layout != s.in {
		s.in = snap.Layout
		s.build(snap.Layout)
	}
	if s.out == s.in {
		return snap
	}
	return snap.Map(s.out, s.from)
}

// build makes the layout that is sent of another one.
func (s *selection) build(in *view.Layout) {
	s.leftOut = 0
	if s.plain(in) {
		s.out, s.from = in, nil
		return
	}
	out := &view.Layout{}
	var from []uint32
	for i := range in.Families {
		f := &in.Families[i]
		if !s.wants(f) {
			continue
		}
		g := *f
		g.Metrics, g.First = nil, len(from)
		at := f.First
		for j := range f.Metrics {
			m := &f.Metrics[j]
			labels := m.AllLabels()
			if s.wantsPool(labels) {
				g.Metrics = append(g.Metrics, view.Metric{Labels: s.withExternal(labels), Points: m.Points})
				for k := range m.Points {
					from = append(from, uint32(at+k))
				}
			}
			at += len(m.Points)
		}
		if len(g.Metrics) == 0 {
			continue
		}
		if len(s.external) > 0 {
			from = sortMetrics(&g, from)
		}
		g.Points = len(from) - g.First
		out.Families = append(out.Families, g)
	}
	out.Points = len(from)
	if s.relabel != nil {
		r := s.relabel.Apply(out)
		composed := make([]uint32, len(r.From))
		for i, at := range r.From {
			composed[i] = from[at]
		}
		out, from = r.Layout, composed
		s.leftOut = r.Equal
	}
	s.out, s.from = out, from
}

// plain reports whether nothing has to be done with a layout.
func (s *selection) plain(in *view.Layout) bool {
	if len(s.match)+len(s.pools)+len(s.external) > 0 || s.relabel != nil {
		return false
	}
	return !slices.ContainsFunc(in.Families, func(f view.Family) bool {
		return !s.wants(&f) || slices.ContainsFunc(f.Metrics, func(m view.Metric) bool { return len(m.Extra) > 0 })
	})
}

func (s *selection) wants(f *view.Family) bool {
	if s.without != "" && strings.HasPrefix(f.Name, s.without) {
		return false
	}
	if len(s.match) == 0 {
		return true
	}
	return slices.ContainsFunc(s.match, func(re *regexp.Regexp) bool {
		return re.MatchString(f.Name) || f.Type == metric.Counter && re.MatchString(f.Name+"_total")
	})
}

func (s *selection) wantsPool(labels []metric.Label) bool {
	if len(s.pools) == 0 {
		return true
	}
	for _, l := range labels {
		if l.Name == "pool" {
			return slices.Contains(s.pools, l.Value)
		}
	}
	return false
}

// withExternal returns the labels with the external ones whose names they do not have.
func (s *selection) withExternal(labels []metric.Label) []metric.Label {
	if len(s.external) == 0 {
		return labels
	}
	out := slices.Clone(labels)
	for _, l := range s.external {
		if !slices.ContainsFunc(labels, func(has metric.Label) bool { return has.Name == l.Name }) {
			out = append(out, l)
		}
	}
	metric.SortLabels(out)
	return out
}

// sortMetrics puts the metrics of a family in order again, and the end of from with them.
func sortMetrics(f *view.Family, from []uint32) []uint32 {
	byLabels := func(a, b view.Metric) int { return metric.CompareLabels(a.Labels, b.Labels) }
	if slices.IsSortedFunc(f.Metrics, byLabels) {
		return from
	}
	type placed struct {
		view.Metric
		from []uint32
	}
	var all []placed
	at := f.First
	for _, m := range f.Metrics {
		all = append(all, placed{m, slices.Clone(from[at : at+len(m.Points)])})
		at += len(m.Points)
	}
	slices.SortStableFunc(all, func(a, b placed) int { return byLabels(a.Metric, b.Metric) })
	from = from[:f.First]
	for i, p := range all {
		f.Metrics[i] = p.Metric
		from = append(from, p.from...)
	}
	return from
}

// clean returns s as protobuf and JSON can carry it: each byte that is not part of valid
// UTF-8 becomes U+FFFD, as a scrape has it.
func clean(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return string([]rune(s))
}
