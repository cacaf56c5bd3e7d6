package view

import (
	"slices"
	"testing"

	"aggregatord/internal/metric"
)

func labels(pairs ...string) (list []metric.Label) {
	for i := 0; i < len(pairs); i += 2 {
		list = append(list, metric.Label{Name: pairs[i], Value: pairs[i+1]})
	}
	return list
}

func TestAllLabels(t *testing.T) {
	for name, c := range map[string]struct{ own, extra, want []metric.Label }{
		"none":    {},
		"own":     {own: labels("a", "1"), want: labels("a", "1")},
		"extra":   {extra: labels("pool", "x"), want: labels("pool", "x")},
		"between": {own: labels("a", "1", "z", "2"), extra: labels("pool", "x"), want: labels("a", "1", "pool", "x", "z", "2")},
		"around":  {own: labels("m", "1"), extra: labels("a", "x", "z", "y"), want: labels("a", "x", "m", "1", "z", "y")},
	} {
		m := Metric{Labels: c.own, Extra: c.extra}
		if got := m.AllLabels(); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
