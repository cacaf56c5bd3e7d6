package buildinfo

import (
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
)

func TestGet(t *testing.T) {
	got := Get()
	if got.Version != Version || got.GoVersion != runtime.Version() || got.Platform != runtime.GOOS+"/"+runtime.GOARCH ||
		got.Revision == "" {
		t.Errorf("%+v", got)
	}
}

func TestRevision(t *testing.T) {
	for name, tc := range map[string]struct {
		settings []debug.BuildSetting
		want     string
	}{
		"none":     {nil, "unknown"},
		"other":    {[]debug.BuildSetting{{Key: "GOOS", Value: "linux"}}, "unknown"},
		"clean":    {[]debug.BuildSetting{{Key: "vcs.revision", Value: "abc"}, {Key: "vcs.modified", Value: "false"}}, "abc"},
		"modified": {[]debug.BuildSetting{{Key: "vcs.modified", Value: "true"}, {Key: "vcs.revision", Value: "abc"}}, "abc-modified"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := revision(tc.settings); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// TestLinked builds a program with the flag that the comment of Version gives.
func TestLinked(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "aggregatord")
	build := exec.Command("go", "build", "-ldflags", "-X aggregatord/internal/buildinfo.Version=1.2.3-test", "-o", bin,
		"../../cmd/aggregatord")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := exec.Command(bin, "version").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "aggregatord 1.2.3-test (") {
		t.Errorf("%v: %s", err, out)
	}
}
