package main

import (
	"fmt"
	"slices"
	"strings"
)

// A shape says how large a directory is.
type shape struct {
	name string
	// workers is how many processes have files, series how many entries each has.
	workers, series int
	// dead says that nobody holds the files open any more.
	dead bool
	// python is how many rounds the Python client's collector takes part in.
	python int
}

func (s shape) entries() int { return s.workers * s.series }

func (s shape) String() string {
	if s.dead {
		return fmt.Sprintf("%s (%d dead pids × %d)", s.name, s.workers, s.series)
	}
	return fmt.Sprintf("%s (%d × %d)", s.name, s.workers, s.series)
}

// The shapes, by name. The size of dead is that of a directory from a real report.
var shapes = []shape{
	{name: "small", workers: 16, series: 5_000, python: 5},
	{name: "medium", workers: 64, series: 20_000, python: 1},
	{name: "large", workers: 256, series: 20_000},
	{name: "dead", workers: 6_802, series: 98, dead: true},
	{name: "tiny", workers: 4, series: 400, python: 1},
	{name: "tiny-dead", workers: 60, series: 98, dead: true},
}

// parseShapes reads a list of names.
func parseShapes(list string) ([]shape, error) {
	var out []shape
	for name := range strings.SplitSeq(list, ",") {
		i := slices.IndexFunc(shapes, func(s shape) bool { return s.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no shape is called %q", name)
		}
		out = append(out, shapes[i])
	}
	return out, nil
}
