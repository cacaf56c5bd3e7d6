package process

import (
	"path"
	"slices"
	"strings"

	"github.com/prometheus/procfs"
)

// cgroupCounts are the counts of control groups.
type cgroupCounts struct {
	// ThrottledNanos is for how long they were kept from running, in nanoseconds, and OOMKills
	// how many processes were killed because their memory had reached its limit.
	ThrottledNanos, OOMKills uint64
	// CPU and Memory say that there is such a count: the outermost group has none.
	CPU, Memory bool
}

// cgroups finds control groups, of versions 1 and 2 (cgroups(7)).
type cgroups struct{ mount string }

// A cgroup is where the counts of a process's groups are. The keys tell one from another.
type cgroup struct {
	cpuKey, cpu       string
	memoryKey, memory string
}

// of returns the groups of a process. A process of another container is in a group that our
// file system does not show, but that of its container does.
func (c *cgroups) of(root string, list []procfs.Cgroup) cgroup {
	var found cgroup
	for _, g := range list {
		if strings.ContainsRune(g.Path, 0) {
			continue
		}
		dir := path.Join(c.mount, strings.Join(g.Controllers, ","))
		at := path.Join(dir, g.Path)
		if g.Path == "/.." || strings.HasPrefix(g.Path, "/../") {
			at = root + dir
		}
		unified := g.HierarchyID == 0 && len(g.Controllers) == 0
		if slices.Contains(g.Controllers, "cpu") || (unified && found.cpu == "") {
			found.cpuKey, found.cpu = g.Path, at
		}
		if slices.Contains(g.Controllers, "memory") || (unified && found.memory == "") {
			found.memoryKey, found.memory = g.Path, at
		}
	}
	return found
}

// countCgroups reads the groups of all processes, each once. A container that is replaced
// has new groups that begin at 0: Prometheus knows such a reset.
func (g *group) countCgroups() {
	cpus, memories := map[string]bool{}, map[string]bool{}
	var sum cgroupCounts
	for _, p := range g.sorted() {
		if p.ended {
			continue
		}
		c := &p.cgroup
		if c.cpu != "" && !cpus[c.cpuKey] {
			if data, err := g.o.readFile(c.cpu+"/cpu.stat", 64<<10); err == nil {
				cpus[c.cpuKey] = true
				if v, ok := keyValue(data, "throttled_usec"); ok { // version 2
					sum.ThrottledNanos, sum.CPU = sum.ThrottledNanos+v*1000, true
				} else if v, ok := keyValue(data, "throttled_time"); ok {
					sum.ThrottledNanos, sum.CPU = sum.ThrottledNanos+v, true
				}
			}
		}
		if c.memory == "" || memories[c.memoryKey] {
			continue
		}
		for _, file := range []string{"/memory.events", "/memory.oom_control"} { // version 2, version 1
			if data, err := g.o.readFile(c.memory+file, 64<<10); err == nil {
				memories[c.memoryKey] = true
				if v, ok := keyValue(data, "oom_kill"); ok {
					sum.OOMKills, sum.Memory = sum.OOMKills+v, true
				}
			}
		}
	}
	g.cgroupSum = sum
}
