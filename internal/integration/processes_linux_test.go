package integration

import (
	"errors"
	"fmt"
	"testing"
)

// TestProcesses: the processes of workers are served beside what they write, stand aside
// where they write the same, and are listed by the API.
func TestProcesses(t *testing.T) {
	t.Parallel()
	dir := sourceDir(t)
	d := serve(t, "--dir", "web="+dir)
	w := startWorkers(t, dir, program{
		Metrics: []declared{{Name: "aggregatord_pool_threads", Type: "gauge", Help: "Mine.", Mode: "max"}},
		Workers: []worker{
			{Steps: []step{{Metric: "aggregatord_pool_threads", Op: "set", Value: "7"}}},
			{Steps: []step{{Metric: "aggregatord_pool_threads", Op: "set", Value: "5"}}},
		},
	})
	eventually(t, patience, func() error {
		v, err := d.text()
		if err != nil {
			return err
		}
		if n := v.value("aggregatord_pool_workers", `aggregatord_pool_workers{pool="web"}`); n != 2 {
			return fmt.Errorf("%v workers are seen, want 2", n)
		}
		for _, scrape := range []func() (view, error){d.text, d.protobuf, d.openMetrics} {
			v, err := scrape()
			if err != nil {
				return err
			}
			cpu := v.value("process_cpu_seconds", `process_cpu_seconds_total{pool="web"}`)
			if cpu == 0 {
				cpu = v.value("process_cpu_seconds_total", `process_cpu_seconds_total{pool="web"}`)
			}
			if cpu <= 0 || v.value("process_open_fds", `process_open_fds{pool="web"}`) < 6 {
				return fmt.Errorf("CPU is %v, descriptors %v", cpu, v["process_open_fds"])
			}
			if f := v["aggregatord_pool_threads"]; f == nil || f.Help != "Mine." || f.Samples[`aggregatord_pool_threads{pool="web"}`] != 7 {
				return fmt.Errorf("what workers write is %+v", f)
			}
		}
		if !d.logNames("aggregatord_pool_threads") {
			return errors.New("the log does not say that the daemon's own stands aside")
		}
		return nil
	})
	for _, p := range w.processes {
		p.kill()
	}
	eventually(t, patience, func() error {
		v, err := d.text()
		if n := v.value("aggregatord_pool_workers", `aggregatord_pool_workers{pool="web"}`); err == nil && n != 0 {
			err = fmt.Errorf("%v workers are seen, and none is alive", n)
		}
		return err
	})
	d.stop()

	d = serve(t, "--dir", dir, "--process.disable")
	if v := d.mustText(); v["aggregatord_pool_workers"] != nil || v["process_cpu_seconds"] != nil {
		t.Error("processes are served with --process.disable")
	}
	d.stop()
}
