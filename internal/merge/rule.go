package merge

import (
	"errors"
	"fmt"
	"strings"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// Errors of Learn. What they concern costs only the entry they are about.
var (
	// ErrSample: the sample name does not belong to the family, or lacks a label that
	// its type needs. Serving it would make the exposition invalid.
	ErrSample = errors.New("sample does not belong to its family")
	// ErrSeriesLimit: the index holds as many series as it may.
	ErrSeriesLimit = errors.New("series limit of the pool reached")
	// ErrFamilyLimit: the family holds as many series as it may.
	ErrFamilyLimit = errors.New("series limit of the family reached")
	// ErrFamiliesLimit: the index holds as many families as it may.
	ErrFamiliesLimit = errors.New("limit of metric families of the pool reached")
	// ErrBytesLimit: the keys and labels of the index, or the entries of its sources, have as many
	// bytes as they may.
	ErrBytesLimit = errors.New("limit of bytes of the pool reached")
	// ErrLabelLimit: the series has more labels than it may.
	ErrLabelLimit = errors.New("label limit of a series reached")
	// ErrLabelLength: a label's name or value is longer than it may be.
	ErrLabelLength = errors.New("label is too long")
)

// A LimitError is the error of Learn that one of the limits gives. It is one of the errors
// above, and says more.
type LimitError struct {
	Limit error
	// Family is the OpenMetrics name of the family the entry would have been in; empty if there is
	// no room for an entry of any.
	Family string
	// What is how much of what there is or would be.
	What string
}

func (e *LimitError) Error() string {
	if e.Family == "" {
		return fmt.Sprintf("%v: %s", e.Limit, e.What)
	}
	return fmt.Sprintf("%v: %s of %q", e.Limit, e.What, e.Family)
}

// Unwrap returns the limit.
func (e *LimitError) Unwrap() error { return e.Limit }

// limited makes a LimitError.
func limited(limit error, family, format string, args ...any) error {
	return &LimitError{limit, family, fmt.Sprintf(format, args...)}
}

// identity is what a key means: the place of its sample in a family, and its labels without
// le and quantile.
type identity struct {
	family string
	point  view.Point
	labels []metric.Label
}

// identify finds out which point of which family a parsed key is. It takes le and quantile
// out of the key's labels, in place.
func identify(key metric.Key, spec *SourceSpec) (identity, error) {
	id := identity{family: key.Family, labels: key.Series.Labels}
	sample := key.Series.Sample
	suffix, ok := strings.CutPrefix(sample, key.Family)
	if !ok {
		return id, fmt.Errorf("%w: family %q has sample %q", ErrSample, key.Family, sample)
	}
	boundLabel := ""
	switch spec.Type {
	case metric.Counter:
		id.family = FamilyOf(key, spec.Type)
		switch {
		case suffix == "_total":
			id.point.Kind = view.Total
		case suffix == "" && id.family != key.Family:
			id.point.Kind = view.Total
		case suffix == "":
			id.point.Kind = view.Value
		default:
			ok = false
		}
	case metric.Gauge:
		id.point.Kind = view.Value
		ok = suffix == ""
	case metric.Histogram, metric.Summary:
		switch {
		case suffix == "_sum":
			id.point.Kind = view.Sum
		case suffix == "_count":
			id.point.Kind = view.Count
		case suffix == "_bucket" && spec.Type == metric.Histogram:
			id.point.Kind, boundLabel = view.Bucket, "le"
		case suffix == "" && spec.Type == metric.Summary:
			id.point.Kind, boundLabel = view.Quantile, "quantile"
		default:
			ok = false
		}
	default:
		ok = false
	}
	if !ok {
		return id, fmt.Errorf("%w: %s %q has sample %q", ErrSample, spec.Type, key.Family, sample)
	}
	value, found := "", false
	if boundLabel != "" {
		id.labels, value, found = takeLabel(id.labels, boundLabel)
		if found {
			id.point.Bound, found = metric.ParseBound(value)
		}
		if !found || id.point.Bound != id.point.Bound {
			return id, fmt.Errorf("%w: sample %q has %s=%q, which is no number", ErrSample, sample, boundLabel, value)
		}
	}
	if metric.HasStyle(id.point.Bound) {
		id.point.Style = metric.StyleOf(value)
	}
	return id, nil
}

// FamilyOf returns the OpenMetrics name of the family that a key is of.
func FamilyOf(key metric.Key, typ metric.Type) string {
	if len(key.Series.Sample) > len(key.Family) {
		return key.Family // the sample of a family a_total is a_total_total
	}
	return metric.FamilyName(key.Family, typ)
}

func labelIndex(labels []metric.Label, name string) int {
	for i := range labels {
		if labels[i].Name == name {
			return i
		}
	}
	return -1
}

// takeLabel returns the labels without the one called name, and its value.
func takeLabel(labels []metric.Label, name string) (rest []metric.Label, value string, found bool) {
	i := labelIndex(labels, name)
	if i < 0 {
		return labels, "", false
	}
	value = labels[i].Value
	return append(labels[:i], labels[i+1:]...), value, true
}

// withLabel returns the labels with l put in its place.
func withLabel(labels []metric.Label, l metric.Label) []metric.Label {
	labels = append(labels, l)
	metric.SortLabels(labels)
	return labels
}

// renameLabel gives a worker's own label of this name way to ours, as Prometheus does
// with labels of a target: it becomes exported_NAME.
func renameLabel(labels []metric.Label, name string) []metric.Label {
	i := labelIndex(labels, name)
	if i < 0 {
		return labels
	}
	free := "exported_" + name
	for labelIndex(labels, free) >= 0 {
		free = "exported_" + free
	}
	labels[i].Name = free
	metric.SortLabels(labels)
	return labels
}
