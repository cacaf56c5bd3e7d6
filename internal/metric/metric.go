// Package metric holds the words every room shares: metric types, gauge modes,
// labels and how Prometheus clients spell floats. It imports nothing of ours and
// keeps no state.
package metric

import (
	"cmp"
	"slices"
	"strings"
)

// Type is the type of a metric family. The zero value, Unknown, is what a reader
// that was told nothing must assume.
type Type uint8

// The types a source file can hold.
const (
	Unknown Type = iota
	Counter
	Gauge
	Histogram
	Summary
)

var typeNames = [...]string{Unknown: "unknown", Counter: "counter", Gauge: "gauge", Histogram: "histogram", Summary: "summary"}

// Counts reports whether the values of a type only grow, from zero: those of gauges do not, and of
// an unknown type nobody knows.
func (t Type) Counts() bool { return t == Counter || t == Histogram || t == Summary }

// String returns the OpenMetrics name of the type.
func (t Type) String() string {
	if int(t) < len(typeNames) {
		return typeNames[t]
	}
	return typeNames[Unknown]
}

// ParseType returns the type whose String is s.
func ParseType(s string) (Type, bool) {
	for t := Counter; int(t) < len(typeNames); t++ {
		if typeNames[t] == s {
			return t, true
		}
	}
	return Unknown, false
}

// FamilyName returns the OpenMetrics name of a family: clients from before OpenMetrics name
// that of a counter like its sample, with _total.
func FamilyName(family string, typ Type) string {
	if base, total := strings.CutSuffix(family, "_total"); typ == Counter && total && base != "" {
		return base
	}
	return family
}

// Mode says how the values that several processes hold for one gauge become the
// served ones. Counters, histograms and summaries are always added and have NoMode.
type Mode uint8

// The gauge modes. A Live mode counts only processes that are alive now.
const (
	NoMode Mode = iota
	All
	LiveAll
	Sum
	LiveSum
	Max
	LiveMax
	Min
	LiveMin
	MostRecent
	LiveMostRecent
)

var modeNames = [...]string{
	All: "all", LiveAll: "liveall", Sum: "sum", LiveSum: "livesum", Max: "max", LiveMax: "livemax",
	Min: "min", LiveMin: "livemin", MostRecent: "mostrecent", LiveMostRecent: "livemostrecent",
}

// String returns the mode as prometheus_client spells it in a file name, or "" for NoMode.
func (m Mode) String() string {
	if int(m) < len(modeNames) {
		return modeNames[m]
	}
	return ""
}

// ParseMode returns the mode named s. "latest" and "livelatest", the names of the
// postmates fork, are other names for mostrecent and livemostrecent.
func ParseMode(s string) (Mode, bool) {
	switch s {
	case "":
		return NoMode, false
	case "latest":
		return MostRecent, true
	case "livelatest":
		return LiveMostRecent, true
	}
	if i := slices.Index(modeNames[:], s); i > 0 {
		return Mode(i), true
	}
	return NoMode, false
}

// ModeNames lists the names that ParseMode accepts, aliases last, for help and error texts.
func ModeNames() []string {
	return append(slices.Clone(modeNames[1:]), "latest", "livelatest")
}

// Live reports whether the mode counts only processes that are alive.
func (m Mode) Live() bool {
	switch m {
	case LiveAll, LiveSum, LiveMax, LiveMin, LiveMostRecent:
		return true
	}
	return false
}

// Base returns the mode without its live part: what is done with the values that count.
func (m Mode) Base() Mode {
	if m.Live() {
		return m - 1
	}
	return m
}

// Label is one name and value. Values keep the bytes the worker wrote.
type Label struct {
	Name, Value string
}

// CompareLabels orders label lists the way series are served: name by name and value
// by value, a list before any longer one that begins with it. Both must be sorted by name.
func CompareLabels(a, b []Label) int {
	return slices.CompareFunc(a, b, func(x, y Label) int {
		if c := strings.Compare(x.Name, y.Name); c != 0 {
			return c
		}
		return cmp.Compare(x.Value, y.Value)
	})
}

// SortLabels sorts labels by name, in place.
func SortLabels(labels []Label) {
	slices.SortFunc(labels, func(x, y Label) int { return strings.Compare(x.Name, y.Name) })
}

// Series is what identifies a time series: a sample name and its labels, sorted by
// name and without duplicates. It owns its strings.
type Series struct {
	Sample string
	Labels []Label
}

// Key is what the key of one entry of a source file says. It owns its strings.
type Key struct {
	// Family is the name the worker gave the metric, without the suffixes of its samples.
	Family string
	Series Series
	// Help is what the application gave, which may be nothing.
	Help string
	// NoHelp says that the key does not record a help text, and Help is empty for that reason.
	NoHelp bool
}
