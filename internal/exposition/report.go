package exposition

import (
	"fmt"
	"strings"
)

// Reason says why a format does not carry something as it is. It is short and constant, for
// use as a metric label.
type Reason string

// The reasons.
const (
	// NameCollision: a name is already taken by another family (With).
	NameCollision Reason = "name_collision"
	// BadName: the family has no name.
	BadName Reason = "bad_name"
	// LabelCollision: metrics have, once they are spelled, the labels of an earlier metric, or
	// two labels of one name.
	LabelCollision Reason = "label_collision"
	// BadPoint: points do not belong to the type of their family, or their bound is NaN.
	BadPoint Reason = "bad_point"
	// BadValue: values are such that a reader of the format refuses the whole exposition, or
	// that the format cannot spell.
	BadValue Reason = "bad_value"
	// BadShape: OpenMetrics wants more or other points of a metric of this type: a histogram
	// with its last bucket, and with sum and count or neither; quantiles between 0 and 1; no
	// sum beside negative bounds.
	BadShape Reason = "bad_shape"
	// NoTotal: OpenMetrics knows no counter without _total.
	NoTotal Reason = "no_total"
	// TooLarge: the labels of the family need more than 4 GiB.
	TooLarge Reason = "too_large"
)

// Reasons lists them all, for metrics that are there before they count.
func Reasons() []Reason {
	return []Reason{NameCollision, BadName, LabelCollision, BadPoint, BadValue, BadShape, NoTotal, TooLarge}
}

// An Omission is what a format does not carry of one family, and why.
type Omission struct {
	Family string // as the snapshot names it
	Reason Reason
	// With names the family that was preferred, in a NameCollision.
	With string
	// Metrics is the number of metrics left out, or Points that of points. The whole family
	// is left out if both are 0 and Untyped is false.
	Metrics, Points int
	// Example has the labels of the first of those metrics, as the text format writes them.
	Example string
	// Untyped says that nothing is left out but the type: the samples are all there, in
	// families of unknown type.
	Untyped bool
}

// String says it in a few words, for a log line.
func (o Omission) String() string {
	what := fmt.Sprintf("%q", o.Family)
	switch {
	case o.Metrics == 1:
		what = "1 metric of " + what
	case o.Metrics > 0:
		what = fmt.Sprintf("%d metrics of %s", o.Metrics, what)
	case o.Points > 0:
		what = fmt.Sprintf("%d points of %s", o.Points, what)
	}
	if o.Example != "" {
		what += " such as {" + o.Example + "}"
	}
	if o.Untyped {
		what = "the type of " + what
	}
	what += ": " + string(o.Reason)
	if o.With != "" {
		what += fmt.Sprintf(" with %q", o.With)
	}
	return what
}

// A Report lists what a format does not carry of what was served last, in the order of the
// output.
type Report struct {
	Format Format
	// Instead is the format that was served because it carries more, to a client that
	// accepts both. It is Format itself if that was served.
	Instead Format
	// Omissions is what is left out, Untyped what loses its type.
	Omissions, Untyped []Omission
}

// Avoided reports whether another format was served instead.
func (r Report) Avoided() bool { return r.Format != r.Instead }

// exampleBytes bounds the labels that an Omission names.
const exampleBytes = 200

// example shortens labels for people.
func example(labels []byte) string {
	if len(labels) <= exampleBytes {
		return string(labels)
	}
	return strings.ToValidUTF8(string(labels[:exampleBytes]), "") + "..."
}

// loss is how much a format does not carry.
type loss struct {
	left    int // metrics and points that are left out
	untyped int // families that lose their type
}

func (l loss) none() bool { return l == loss{} }

// less reports whether a format with this loss is to be preferred to one with another.
func (l loss) less(o loss) bool {
	if l.left != o.left {
		return l.left < o.left
	}
	return l.untyped < o.untyped
}
