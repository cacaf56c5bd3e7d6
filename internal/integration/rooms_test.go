package integration

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "aggregatord"

// rooms says which of our packages each package may import, its tests aside, and why
// no more. Arrows point one way: the way of the data is directory, watch, store, merge,
// exposition, serve.
var rooms = map[string]struct {
	may []string
	why string
	// onlyStandard forbids every package outside the standard library as well.
	onlyStandard bool
	// not lists packages of the standard library that have no place there.
	not []string
}{
	"internal/metric": {
		why: "everybody shares its words, so it knows nobody", onlyStandard: true,
		not: []string{"os", "net/http"},
	},
	"internal/deltas": {
		why: "it is a way to keep numbers, whatever they mean", onlyStandard: true,
		not: []string{"os", "net/http", "time"},
	},
	"internal/nearest": {
		why: "it compares words, whatever they mean", onlyStandard: true,
		not: []string{"os", "net/http", "time"},
	},
	"deploy/release": {
		why: "it builds the program and is no part of it", onlyStandard: true,
	},
	"internal/view": {
		may: []string{"internal/metric"}, onlyStandard: true,
		why: "it is the form of what is served, for those who make it and those who show it",
		not: []string{"os", "net/http", "time"},
	},
	"internal/merge": {
		may: []string{"internal/metric", "internal/deltas", "internal/view"}, onlyStandard: true,
		why: "the rules know no file, no clock, no HTTP and no logger, so that they can be tested by themselves",
		not: []string{"os", "net/http", "time", "log", "log/slog"},
	},
	"internal/store": {
		may: []string{"internal/metric", "internal/deltas"},
		why: "it turns names and bytes into entries; what they mean together is merge's, and HTTP is serve's",
		not: []string{"net/http"},
	},
	"internal/watch": {
		why: "it knows which files exist and who may write to them, not what is in them",
		not: []string{"net/http"},
	},
	"internal/exposition": {
		may: []string{"internal/metric", "internal/view"},
		why: "it turns a snapshot into bytes, wherever the snapshot came from",
		not: []string{"os"},
	},
	"internal/exposition/expositiontest": {
		may: []string{"internal/metric", "internal/store"},
		why: "it makes a directory for tests and says what is in it, which is nothing that the daemon has found out",
		not: []string{"net/http"},
	},
	"internal/serve": {
		may: []string{"internal/exposition", "internal/view", "internal/metric"},
		why: "it knows HTTP; where snapshots come from is said by the interface it defines",
	},
	"internal/process": {
		may: []string{"internal/metric", "internal/status", "internal/telemetry", "internal/view"},
		why: "it reads processes; which files are a pool's is told by the interface it defines",
		not: []string{"net/http"},
	},
	"internal/archive": {
		may: []string{"internal/merge", "internal/store", "internal/selector", "internal/metric"},
		why: "it keeps what the dead left; which files those are is watch's to say",
		not: []string{"net/http"},
	},
	"internal/telemetry": {
		may: []string{"internal/view", "internal/metric"},
		why: "it shows numbers that it is given as one more snapshot",
		not: []string{"os", "net/http"},
	},
	"internal/logs": {
		why: "it bounds what logging costs, whoever logs and whatever is logged",
		not: []string{"os", "net/http"},
	},
	"internal/demo": {
		may: []string{"internal/store", "internal/metric"},
		why: "it plays the application, which knows the format of source files and nothing of the daemon",
	},
	"internal/relabel": {
		may: []string{"internal/view", "internal/metric"},
		why: "it makes one view of another, wherever that came from",
		not: []string{"os", "net/http", "time"},
	},
	"internal/policy": {
		may: []string{"internal/merge", "internal/store", "internal/view", "internal/metric"},
		why: "it says what the operator wants of metrics; where they come from and when they are merged is pool's",
		not: []string{"os", "net/http"},
	},
	"internal/selector": {
		may: []string{"internal/metric"}, onlyStandard: true,
		why: "it reads what people write to name series, and knows no series",
		not: []string{"os", "net/http"},
	},
	"internal/status": {
		may: []string{"internal/metric"}, onlyStandard: true,
		why: "it has the shapes in which the daemon tells about itself, for those who tell and those who are told",
		not: []string{"os", "net/http"},
	},
	"internal/api": {
		may: []string{
			"internal/archive", "internal/fleet", "internal/pool", "internal/store", "internal/watch", "internal/view",
			"internal/metric", "internal/selector", "internal/status", "internal/nearest",
		},
		why: "it answers questions from what pool tells; connections and browsers are serve's",
		not: []string{"os"},
	},
	"internal/pool": {
		may: []string{
			"internal/archive", "internal/fold", "internal/policy", "internal/store", "internal/watch", "internal/merge",
			"internal/view", "internal/telemetry", "internal/metric",
		},
		why: "it keeps one directory merged; how that is served is none of its business",
		not: []string{"net/http"},
	},
	"internal/mirror": {
		may: []string{"internal/merge", "internal/metric", "internal/store", "internal/watch"},
		why: "it keeps files of the client beside those of the workers; which values go there, and when, is fold's to say",
		not: []string{"net/http"},
	},
	"internal/fold": {
		may: []string{"internal/archive", "internal/mirror", "internal/store", "internal/watch", "internal/metric", "internal/telemetry"},
		why: "it moves files into the archive step by step; which files those are, and what is served meanwhile, is the pool's to say",
		not: []string{"net/http"},
	},
	"internal/fleet": {
		may: []string{
			"internal/archive", "internal/merge", "internal/metric", "internal/policy", "internal/pool", "internal/relabel",
			"internal/starts", "internal/telemetry", "internal/view", "internal/watch",
		},
		why: "it has the pools and joins their views; what is in a directory is a pool's business",
		not: []string{"net/http", "os"},
	},
	"internal/discover": {
		may: []string{"internal/metric", "internal/policy", "internal/pool", "internal/store", "internal/telemetry"},
		why: "it finds directories and says which are pools, with what their applications say of them; the fleet has the pools",
		not: []string{"net/http"},
	},
	"internal/hangup": {
		why: "what it imports is initialized before it, and a SIGHUP that comes meanwhile ends the program", onlyStandard: true,
		not: []string{"context", "fmt", "net/http", "time"},
	},
	"internal/buildinfo": {
		why: "it tells what the linker recorded", onlyStandard: true,
		not: []string{"net/http"},
	},
	"internal/doctor": {
		may: []string{"internal/archive", "internal/fold", "internal/store", "internal/watch", "internal/metric", "internal/status"},
		why: "it looks at a set-up from outside, so it needs nothing that serves or merges",
	},
	"internal/supervise": {
		why: "it runs a command as a shell or an init does; that the command has metrics is told in its environment only",
		not: []string{"net/http"},
	},
	"internal/terminal": {
		why: "it knows what a terminal shows and does, not what is shown",
		not: []string{"net/http"},
	},
	"internal/top": {
		may: []string{"internal/status", "internal/terminal"},
		why: "it lays out what a daemon has answered; who asks, and where it is shown, is the command's business",
		not: []string{"os", "net/http"},
	},
	"internal/starts": {
		may: []string{"internal/view", "internal/metric"}, onlyStandard: true,
		why: "it looks at views; where they come from and what is done with starts is not its business",
		not: []string{"os", "net/http"},
	},
	"internal/output": {
		may: []string{
			"internal/exposition", "internal/policy", "internal/relabel", "internal/status", "internal/telemetry",
			"internal/view", "internal/metric",
		},
		why: "it sends views that it is given; where they come from, and what the file says about it, is said to it",
	},
	"internal/output/outputtest": {
		may: []string{"internal/starts", "internal/view", "internal/metric"},
		why: "it makes views for tests", onlyStandard: true,
	},
	"internal/config": {
		may: []string{"internal/discover", "internal/policy", "internal/output", "internal/view", "internal/metric", "internal/nearest"},
		why: "it reads the file of settings; whoever needs a setting is given it",
		not: []string{"net/http"},
	},
}

// free are packages that may import every room: they wire the others, or try and measure them.
var free = []string{"internal/daemon", "cmd/aggregatord", "internal/integration", "cmd/bench"}

// TestRooms keeps the arrows between the packages.
func TestRooms(t *testing.T) {
	// With -e a package that does not build is still looked at: others tell of that better.
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports", "./...")
	cmd.Dir = moduleRoot
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for dec := json.NewDecoder(out); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		seen++
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		if slices.Contains(free, name) {
			continue
		}
		room, ok := rooms[name]
		if !ok {
			t.Errorf("%s is a new package: say in rooms_test.go what it may import, and why no more", name)
			continue
		}
		for _, imported := range p.Imports {
			if own, ok := strings.CutPrefix(imported, module+"/"); ok {
				if !slices.Contains(room.may, own) {
					t.Errorf("%s imports %s, but may import %s: %s", name, own, listOr(room.may, "none of our packages"), room.why)
				}
				continue
			}
			first, _, _ := strings.Cut(imported, "/")
			if room.onlyStandard && strings.Contains(first, ".") {
				t.Errorf("%s imports %s, but nothing outside the standard library: %s", name, imported, room.why)
			}
			if slices.Contains(room.not, imported) {
				t.Errorf("%s imports %s: %s", name, imported, room.why)
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if seen < 4 {
		t.Errorf("go list named %d packages: the test looks in the wrong place", seen)
	}
}

// listOr joins names, or says otherwise when there are none.
func listOr(names []string, otherwise string) string {
	if len(names) == 0 {
		return otherwise
	}
	return "only " + strings.Join(names, ", ")
}
