package integration

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// program is what worker.py carries out: which metrics there are, and what each worker
// process does with them.
type program struct {
	Metrics []declared `json:"metrics"`
	Workers []worker   `json:"workers"`
}

// declared is one metric, declared by every worker.
type declared struct {
	Name    string   `json:"name"`
	Type    string   `json:"type"`
	Help    string   `json:"help"`
	Labels  []string `json:"labels"`
	Mode    string   `json:"mode,omitempty"`
	Buckets []string `json:"buckets,omitempty"`
}

// worker is one process.
type worker struct {
	// ID names the worker's files; empty means its pid.
	ID string `json:"id,omitempty"`
	// Busy makes it repeat its last step until it is killed.
	Busy bool `json:"busy,omitempty"`
	// Buckets replaces the buckets of a histogram, by its name, in this worker alone.
	Buckets map[string][]string `json:"buckets,omitempty"`
	Steps   []step              `json:"steps"`
}

// step is one call of a method of a metric. Values are spelled as Python reads them.
type step struct {
	Metric string   `json:"metric"`
	Labels []string `json:"labels,omitempty"`
	Op     string   `json:"op"`
	Value  string   `json:"value,omitempty"`
}

// workers are the running processes of a program.
type workers struct {
	t         *testing.T
	program   program
	processes []*process
	// stdin ends a worker's life, when it is closed.
	stdin []*os.File
}

// startWorkers starts the program's workers on a directory and waits until each has
// done all its steps. They live on until finish or their kill.
func startWorkers(t *testing.T, dir string, p program) *workers {
	t.Helper()
	interpreter := python(t, "prometheus_client")
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "program.json")
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	w := &workers{t: t, program: p}
	for i := range p.Workers {
		cmd := exec.Command(interpreter, app(t, "worker.py"), file, strconv.Itoa(i))
		cmd.Env = appEnv(dir)
		in, out, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdin = in
		w.processes = append(w.processes, start(t, cmd))
		w.stdin = append(w.stdin, out)
		t.Cleanup(func() { out.Close() })
		in.Close()
	}
	for _, proc := range w.processes {
		proc.await("the end of its steps", func(line string) bool { return strings.HasPrefix(line, "done") })
	}
	return w
}

// id returns what names the files of worker i.
func (w *workers) id(i int) string {
	if id := w.program.Workers[i].ID; id != "" {
		return id
	}
	return strconv.Itoa(w.processes[i].pid())
}

// alive returns the ids of the workers that still run.
func (w *workers) alive() []string {
	var ids []string
	for i, p := range w.processes {
		select {
		case <-p.exited:
		default:
			ids = append(ids, w.id(i))
		}
	}
	return ids
}

// finish lets worker i end by itself.
func (w *workers) finish(i int) {
	w.t.Helper()
	w.stdin[i].Close()
	if err := w.processes[i].wait(); err != nil {
		w.t.Errorf("worker %d: %v", i, err)
	}
}
