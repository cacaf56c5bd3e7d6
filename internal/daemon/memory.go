package daemon

import (
	"cmp"
	"math"
	"os"
	"path"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"go.uber.org/zap"

	"aggregatord/internal/merge"
	"aggregatord/internal/telemetry"
)

const (
	// softPercent is how much of what the control group may have the runtime may use before it
	// collects garbage at any price. The rest is for what it does not know of: the pages of the
	// archive, where that is on a tmpfs, and what the kernel keeps for connections.
	softPercent = 80
	// inputShare is the part of the soft limit that limits.bytes_per_pool is by default. With
	// scrapes in all formats, a pool takes about five times what counts there; clients and
	// other pools need some, too.
	inputShare = 8
	// noMemoryLimit is more memory than any machine has: version 1 says so where there is no limit.
	noMemoryLimit = 1 << 60
)

// groupMemory returns how many bytes the control group of this process, or one around it, may
// have: the least of all, 0 if none has a limit. It knows versions 1 and 2 (cgroups(7)).
// file is the text of /proc/self/cgroup, mount where the groups are shown. A group that is not
// shown there is that of a container, whose own group is the mount itself.
func groupMemory(file, mount string) (limit int64) {
	for line := range strings.Lines(file) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) < 3 {
			continue
		}
		dir, name := mount, "memory.max"
		switch {
		case slices.Contains(strings.Split(fields[1], ","), "memory"):
			dir, name = path.Join(mount, fields[1]), "memory.limit_in_bytes"
		case fields[1] != "":
			continue
		}
		for group := path.Join("/", fields[2]); ; group = path.Dir(group) {
			if n := readLimit(path.Join(dir, group, name)); n > 0 && (limit == 0 || n < limit) {
				limit = n
			}
			if group == "/" {
				break
			}
		}
	}
	return limit
}

// readLimit reads a file of a control group. 0 is no limit.
func readLimit(path string) int64 {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64) // "max" is no number
	if err != nil || n >= noMemoryLimit {
		return 0
	}
	return n
}

// limitMemory gives the runtime a soft limit of memory by that of the control group, unless
// GOMEMLIMIT has given it one, and tells how many bytes of keys and labels a pool may have
// by default.
func limitMemory(group int64, log *zap.Logger, set *telemetry.Set) (poolBytes int64) {
	soft := debug.SetMemoryLimit(-1)
	source := "GOMEMLIMIT"
	if os.Getenv("GOMEMLIMIT") == "" {
		soft, source = math.MaxInt64, "none"
		if group > 0 {
			soft, source = group/100*softPercent, "control group"
			debug.SetMemoryLimit(soft)
		}
	}
	gauge := set.Gauge("aggregatord_memory_soft_limit_bytes",
		"Soft limit of the memory of the Go runtime, by GOMEMLIMIT or the control group; 0: none.")
	if soft == math.MaxInt64 {
		return merge.DefaultMaxBytes
	}
	gauge.Set(float64(soft))
	poolBytes = min(merge.DefaultMaxBytes, cmp.Or(soft/inputShare, 1))
	log.Info("memory is limited; near the limit, garbage is collected more often", zap.Int64("soft_limit_bytes", soft),
		zap.String("source", source),
		zap.Int64("group_bytes", group), zap.Int64("default_bytes_per_pool", poolBytes))
	return poolBytes
}
