package relabel

import (
	"strings"

	"github.com/prometheus/prometheus/model/labels"
	prom "github.com/prometheus/prometheus/model/relabel"

	"aggregatord/internal/view"
)

// Idle returns which of the configs match no sample of a layout, as it is when their turn comes.
// It is for people, and looks at every sample anew.
func Idle(configs []*prom.Config, in *view.Layout) (idle []int) {
	matched := make([]bool, len(configs))
	b := labels.NewBuilder(labels.EmptyLabels())
	var sb labels.ScratchBuilder
	for i := range in.Families {
		f := &in.Families[i]
		for k := range f.Metrics {
			all := f.Metrics[k].AllLabels()
			for _, p := range f.Metrics[k].Points {
				setLabels(b, &sb, f, all, p)
				for n, c := range configs {
					matched[n] = matched[n] || matches(c, b)
					if !prom.ProcessBuilder(b, c) {
						break
					}
				}
			}
		}
	}
	for n, ok := range matched {
		if !ok {
			idle = append(idle, n)
		}
	}
	return idle
}

// matches reports whether a config does with a sample what it does with those that match.
func matches(c *prom.Config, b *labels.Builder) bool {
	switch c.Action {
	case prom.KeepEqual, prom.DropEqual, prom.HashMod, prom.Lowercase, prom.Uppercase:
		return true // they have no regular expression
	case prom.LabelMap, prom.LabelDrop, prom.LabelKeep:
		found := false
		b.Range(func(l labels.Label) { found = found || c.Regex.MatchString(l.Name) })
		return found
	}
	values := make([]string, len(c.SourceLabels))
	for i, name := range c.SourceLabels {
		values[i] = b.Get(string(name))
	}
	return c.Regex.MatchString(strings.Join(values, c.Separator))
}
