package archive

import (
	"errors"
	"fmt"
	"slices"

	"aggregatord/internal/metric"
	"aggregatord/internal/selector"
	"aggregatord/internal/store"
)

// A Match says which archived series are meant. It may be used by several goroutines.
type Match struct {
	// Name is the name of a metric, with all its samples, or of a sample.
	Name     string
	selector selector.Selector
}

// ParseMatch reads what people write to name archived series: a metric or a sample, and, unless it
// is empty, a selector of labels in braces, where pid is the worker's ID of a gauge in mode all.
// A key that cannot be read is its own name, and has no labels.
func ParseMatch(name, labels string) (Match, error) {
	if name == "" {
		return Match{}, errors.New("name a metric or a sample")
	}
	m := Match{Name: name}
	if labels == "" {
		return m, nil
	}
	var err error
	m.selector, err = selector.Parse(labels)
	if err == nil && m.selector.Name != "" {
		err = fmt.Errorf("selector %q: the name stands before it, here are only labels, in braces", labels)
	}
	return m, err
}

// pidLabel is the label by which gauges of single workers are told apart.
const pidLabel = "pid"

// Matches reports whether a series is meant.
func (m Match) Matches(s Space, raw string) bool {
	key, err := store.ParseKey([]byte(raw))
	if err != nil {
		return m.Name == raw && m.selector.Matches(raw, nil, "", "")
	}
	if m.Name != key.Family && m.Name != key.Series.Sample {
		return false
	}
	labels, bound := key.Series.Labels, ""
	if s.Worker != "" && s.Mode == metric.All {
		labels = append(slices.Clone(labels), metric.Label{Name: pidLabel, Value: s.Worker})
	}
	boundLabel := ""
	for _, l := range labels {
		if l.Name == "le" {
			boundLabel, bound = l.Name, l.Value
		}
	}
	return m.selector.Matches(key.Series.Sample, labels, boundLabel, bound)
}

// Dropped is what a daemon answers when it was asked to drop series.
type Dropped struct {
	Dropped int `json:"dropped"`
}

// DropSeries takes all series out of the archive that match says, and returns how many. It takes
// effect on disk at the next Commit. Positions change: see Generation. As with Commit, apply is
// called with a function that changes memory, and need not be there.
func (a *Archive) DropSeries(match func(s Space, raw string) bool, apply func(change func())) (dropped int) {
	var left []*Table
	for s, t := range a.totals.Spaces() {
		var out []int
		for i := range t.Len() {
			if match(s, t.Key(i)) {
				out = append(out, i)
			}
		}
		if len(out) > 0 {
			dropped += len(out)
			left = append(left, t.without(out))
		}
	}
	if dropped == 0 {
		return 0
	}
	change := func() {
		for _, t := range left {
			a.Drop(t.space)
			if t.Len() == 0 {
				continue
			}
			a.totals.table(t.space)
			a.totals.tables[t.space] = t
			if !a.unsavedAll {
				var rest Totals
				rest.tables = map[Space]*Table{t.space: t}
				a.unsaved.merge(&rest)
			}
		}
		a.generation++
	}
	if apply != nil {
		apply(change)
	} else {
		change()
	}
	return dropped
}

// without returns a new table without the keys at these positions, which are in order.
func (t *Table) without(out []int) *Table {
	left := newTable(t.space)
	left.folded = t.folded
	var raw []byte
	for i := range t.Len() {
		if len(out) > 0 && out[0] == i {
			out = out[1:]
			continue
		}
		raw = t.AppendKey(raw[:0], i)
		left.keys.appendUnindexed(raw)
		left.hi, left.second = append(left.hi, t.hi[i]), append(left.second, t.second[i])
	}
	left.keys.indexAll(left.Len())
	return left
}
