package policy

import (
	"maps"
	"slices"

	"aggregatord/internal/metric"
)

// labelRule is what a rule does with the labels that a worker wrote.
type labelRule struct {
	keep   bool // listed are kept, not dropped
	listed map[string]bool
	rename map[string]string
}

func compileLabelRule(at place, r *Rule) *labelRule {
	if len(r.DropLabels) == 0 && len(r.KeepLabels) == 0 && len(r.RenameLabels) == 0 {
		return nil
	}
	l := &labelRule{keep: len(r.KeepLabels) > 0, rename: maps.Clone(r.RenameLabels)}
	if len(r.DropLabels)+len(r.KeepLabels) > 0 {
		l.listed = map[string]bool{}
	}
	for _, name := range r.DropLabels {
		if err := checkLabelName(name); err != nil {
			at.wrong("drop_labels", "%w", err)
		}
		l.listed[name] = true
	}
	for _, name := range r.KeepLabels {
		if name == "" {
			at.wrong("keep_labels", "a name is empty; remove it")
		}
		l.listed[name] = true
	}
	targets := map[string]string{}
	for _, from := range slices.Sorted(maps.Keys(r.RenameLabels)) {
		to := r.RenameLabels[from]
		for _, name := range []string{from, to} {
			if err := checkLabelName(name); err != nil {
				at.wrong("rename_label", "%w", err)
			}
		}
		if other, ok := targets[to]; ok {
			at.wrong("rename_label", "%s and %s would both become %s", other, from, to)
		}
		targets[to] = from
	}
	return l
}

// leavesOut reports whether a label is not served.
func (l *labelRule) leavesOut(name string) bool { return l.listed[name] != l.keep }

// apply returns what becomes of the labels. It may change the list in place; the result is
// sorted, if the list is.
func (l *labelRule) apply(labels []metric.Label) []metric.Label {
	if l.listed != nil {
		labels = slices.DeleteFunc(labels, func(has metric.Label) bool { return l.leavesOut(has.Name) })
	}
	if len(l.rename) == 0 {
		return labels
	}
	// A label gives way to one that gets its name, unless it gets another itself.
	taken := map[string]bool{}
	for _, has := range labels {
		if to, ok := l.rename[has.Name]; ok {
			taken[to] = true
		}
	}
	if len(taken) == 0 {
		return labels
	}
	labels = slices.DeleteFunc(labels, func(has metric.Label) bool {
		_, renamed := l.rename[has.Name]
		return taken[has.Name] && !renamed
	})
	for i, has := range labels {
		if to, ok := l.rename[has.Name]; ok {
			labels[i].Name = to
		}
	}
	metric.SortLabels(labels)
	return labels
}
