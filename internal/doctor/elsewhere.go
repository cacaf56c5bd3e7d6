package doctor

import (
	"path/filepath"
	"slices"
)

// Elsewhere tells where a process and its descendants write source files: whether in dir, and
// in which other directories, sorted.
func Elsewhere(pid int, dir string) (there bool, others []string) {
	const procRoot = "/proc"
	if resolved, err := filepath.EvalSymlinks(dir); err == nil {
		dir = resolved
	}
	e := &examination{opts: Options{PID: pid}, processes: readProcesses(procRoot)}
	family := e.family()
	for _, p := range e.processes {
		if !family[p.pid] {
			continue
		}
		for used, writes := range p.uses() {
			switch {
			case !writes:
			case used == dir:
				there = true
			case !slices.Contains(others, used):
				others = append(others, used)
			}
		}
	}
	slices.Sort(others)
	return there, others
}
