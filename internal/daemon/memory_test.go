package daemon

import (
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"aggregatord/internal/merge"
	"aggregatord/internal/telemetry"
)

func TestGroupMemory(t *testing.T) {
	for name, tc := range map[string]struct {
		groups string
		files  map[string]string
		want   int64
	}{
		"none":                {"", nil, 0},
		"version_2":           {"0::/a/b\n", map[string]string{"a/b/memory.max": "201326592\n"}, 192 << 20},
		"version_2_max":       {"0::/a\n", map[string]string{"a/memory.max": "max\n"}, 0},
		"group_around_it":     {"0::/a/b\n", map[string]string{"a/b/memory.max": "max\n", "a/memory.max": "1048576\n"}, 1 << 20},
		"least":               {"0::/a/b\n", map[string]string{"a/b/memory.max": "2097152\n", "a/memory.max": "1048576\n"}, 1 << 20},
		"container":           {"0::/\n", map[string]string{"memory.max": "1048576\n"}, 1 << 20},
		"container_not_shown": {"4:memory:/docker/x\n", map[string]string{"memory/memory.limit_in_bytes": "1048576\n"}, 1 << 20},
		"version_1": {
			"5:cpu,cpuacct:/c\n4:memory:/a\n",
			map[string]string{"memory/a/memory.limit_in_bytes": "1048576\n", "memory.max": "7"},
			1 << 20,
		},
		"version_1_max": {"4:memory:/a\n", map[string]string{"memory/a/memory.limit_in_bytes": "9223372036854771712\n"}, 0},
		"both":          {"4:memory:/a\n0::/u\n", map[string]string{"memory/a/memory.limit_in_bytes": "1048576\n"}, 1 << 20},
		"nonsense":      {"x\n0::/../../a\n::\n", map[string]string{"a/memory.max": "-5\n"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, content := range tc.files {
				path := filepath.Join(dir, file)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got := groupMemory(tc.groups, dir); got != tc.want {
				t.Errorf("%d bytes, want %d", got, tc.want)
			}
		})
	}
}

func TestLimitMemory(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	for name, tc := range map[string]struct {
		environment       string
		group, soft, pool int64
	}{
		"none":     {"", 0, before, merge.DefaultMaxBytes},
		"by_group": {"", 192 << 20, (192 << 20) / 100 * softPercent, (192 << 20) / 100 * softPercent / inputShare},
		"large":    {"", 64 << 30, (64 << 30) / 100 * softPercent, merge.DefaultMaxBytes},
		"by_hand":  {"100MiB", 192 << 20, 100 << 20, (100 << 20) / inputShare}, // the runtime has read it at its start
	} {
		t.Run(name, func(t *testing.T) {
			debug.SetMemoryLimit(before)
			t.Setenv("GOMEMLIMIT", tc.environment)
			if tc.environment != "" {
				debug.SetMemoryLimit(tc.soft)
			}
			core, logs := observer.New(zap.InfoLevel)
			set := telemetry.NewSet()
			if got := limitMemory(tc.group, zap.New(core), set); got != tc.pool {
				t.Errorf("%d bytes for a pool, want %d", got, tc.pool)
			}
			if got := debug.SetMemoryLimit(-1); got != tc.soft {
				t.Errorf("the soft limit is %d, want %d", got, tc.soft)
			}
			limited := tc.soft != math.MaxInt64
			if (logs.Len() == 1) != limited {
				t.Errorf("log: %v", logs.All())
			}
			if limited && !strings.Contains(logs.All()[0].Message, "memory is limited") {
				t.Errorf("log: %v", logs.All())
			}
		})
	}
}
