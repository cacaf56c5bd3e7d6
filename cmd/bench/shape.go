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
	// pools is how many directories there are, each with so many workers, who have files of
	// all twelve kinds. 0: one directory, of the shape that the floor knows.
	pools int
	// deaths is how many workers die in each second, each with one file. 0: none.
	deaths int
	// archived says that there are no files but an archive with so many series.
	archived bool
}

func (s shape) entries() int { return max(1, s.pools) * s.workers * s.series }

func (s shape) files() int {
	if s.deaths > 0 {
		return s.workers
	}
	if s.pools > 0 {
		return s.pools * s.workers * len(twelveKinds)
	}
	return s.workers * int(kinds)
}

func (s shape) String() string {
	switch {
	case s.pools > 0:
		return fmt.Sprintf("%s (%d pools × %d workers × %d)", s.name, s.pools, s.workers, s.series)
	case s.deaths > 0:
		return fmt.Sprintf("%s (%d a second × %d)", s.name, s.deaths, s.series)
	case s.archived:
		return fmt.Sprintf("%s (%d series)", s.name, s.series)
	case s.dead:
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
	{name: "pools", pools: 350, workers: 4, series: 510},
	{name: "wide", pools: 1, workers: 1_000, series: 110},
	{name: "archive", workers: 1, series: 800_000, archived: true},
	// As many workers as there are files at a time, since the dead rest for some seconds.
	{name: "deaths", workers: 20_000, series: 100, deaths: 2_000},
	{name: "tiny", workers: 4, series: 400, python: 1},
	{name: "tiny-dead", workers: 60, series: 98, dead: true},
	{name: "tiny-pools", pools: 5, workers: 2, series: 60},
	{name: "tiny-wide", pools: 1, workers: 20, series: 60},
	{name: "tiny-deaths", workers: 500, series: 20, deaths: 100},
	{name: "tiny-archive", workers: 1, series: 5_000, archived: true},
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
