package main

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"aggregatord/internal/config"
)

// revive makes the processes of some source files live, for as long as the test does.
func revive(t *testing.T, paths ...string) {
	t.Helper()
	for _, path := range paths {
		// Whoever may write to a file keeps it alive.
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
	}
}

// TestPresets applies each preset to what its library has written: by an old generation of
// workers, which is dead, and by a new one, which lives.
func TestPresets(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("it takes Linux to tell who is dead")
	}
	for name, tc := range map[string]struct {
		// without and with are the series of the gauges that the preset is about.
		without, with []string
	}{
		"celery": {
			without: []string{
				`celery_queue_length{pid="new-1",queue="celery"} 4`, `celery_queue_length{pid="new-2",queue="celery"} 2`,
				`celery_queue_length{pid="old-1",queue="celery"} 4`, `celery_queue_length{pid="old-2",queue="celery"} 2`,
				`celery_tasks_in_progress{pid="new-1",task_name="celery_app.quick"} 0`,
				`celery_tasks_in_progress{pid="new-1",task_name="celery_app.slow"} 1`,
				`celery_tasks_in_progress{pid="new-2",task_name="celery_app.quick"} 0`,
				`celery_tasks_in_progress{pid="new-2",task_name="celery_app.slow"} 1`,
				`celery_tasks_in_progress{pid="old-1",task_name="celery_app.quick"} 0`,
				`celery_tasks_in_progress{pid="old-1",task_name="celery_app.slow"} 1`,
				`celery_tasks_in_progress{pid="old-2",task_name="celery_app.quick"} 0`,
				`celery_tasks_in_progress{pid="old-2",task_name="celery_app.slow"} 1`,
			},
			with: []string{
				`celery_queue_length{queue="celery"} 4`,
				`celery_tasks_in_progress{task_name="celery_app.quick"} 0`, `celery_tasks_in_progress{task_name="celery_app.slow"} 2`,
			},
		},
		"django": {
			without: []string{
				`django_migrations_applied_total{connection="default",pid="new"} 14`,
				`django_migrations_applied_total{connection="default",pid="old"} 0`,
				`django_migrations_unapplied_total{connection="default",pid="new"} 0`,
				`django_migrations_unapplied_total{connection="default",pid="old"} 14`,
			},
			with: []string{
				`django_migrations_applied_total{connection="default"} 14`, `django_migrations_unapplied_total{connection="default"} 0`,
			},
		},
		"fastapi": {
			without: []string{
				`fastapi_app_info{app_name="shop",pid="new"} 1`, `fastapi_app_info{app_name="shop",pid="old"} 1`,
				`fastapi_requests_in_progress{path="/slow",pid="new"} 1`, `fastapi_requests_in_progress{path="/slow",pid="old"} 2`,
				`http_requests_inprogress{handler="/item/{n}",method="GET"} 0`, `http_requests_inprogress{handler="/slow",method="GET"} 1`,
			},
			with: []string{
				`fastapi_app_info{app_name="shop"} 1`, `fastapi_requests_in_progress{path="/slow"} 1`,
				`http_requests_inprogress{handler="/item/{n}",method="GET"} 0`, `http_requests_inprogress{handler="/slow",method="GET"} 1`,
			},
		},
		"flask": {
			without: []string{
				`app_info{version="1.0"} 1`, `app_info{version="1.1"} 1`, `flask_exporter_info{version="0.23.2"} 1`,
				`in_progress{pid="new"} 1`, `in_progress{pid="old"} 2`,
			},
			with: []string{
				`app_info{version="1.1"} 1`, `flask_exporter_info{version="0.23.2"} 1`, `in_progress 1`,
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := sourceDir(t)
			files, err := filepath.Glob(filepath.Join("../../testdata/presets", name, "*.db"))
			if err != nil || len(files) == 0 {
				t.Fatalf("no recorded files: %v", err)
			}
			for _, from := range files {
				data, err := os.ReadFile(from)
				if err != nil {
					t.Fatal(err)
				}
				to := filepath.Join(dir, filepath.Base(from))
				if err := os.WriteFile(to, data, 0o600); err != nil {
					t.Fatal(err)
				}
				if strings.Contains(to, "_new") {
					revive(t, to)
				}
			}
			// gauges are the lines of what is dumped; all else is the same with the preset and
			// without it.
			dump := func(content string) (gauges, others []string) {
				family := ""
				for line := range strings.Lines(must(t, "dump", "--dir", dir, "--config.file", configFile(t, content))) {
					line = strings.TrimSuffix(line, "\n")
					if typ, ok := strings.CutPrefix(line, "# TYPE "); ok {
						_, family, _ = strings.Cut(typ, " ")
					}
					if family == "gauge" && !strings.HasPrefix(line, "#") {
						gauges = append(gauges, line)
					} else if family != "gauge" {
						others = append(others, line)
					}
				}
				return gauges, others
			}
			without, others := dump("")
			with, same := dump("presets: [" + name + "]\n")
			if !slices.Equal(without, tc.without) {
				t.Errorf("without the preset\n%s\nwant\n%s", strings.Join(without, "\n"), strings.Join(tc.without, "\n"))
			}
			if !slices.Equal(with, tc.with) {
				t.Errorf("with the preset\n%s\nwant\n%s", strings.Join(with, "\n"), strings.Join(tc.with, "\n"))
			}
			if !slices.Equal(others, same) {
				t.Error("it changes more than gauges")
			}
		})
	}
	// Each one is tried.
	recorded, err := filepath.Glob("../../testdata/presets/*")
	if err != nil || len(recorded) != len(config.PresetNames()) {
		t.Errorf("recorded %v, presets %v: %v", recorded, config.PresetNames(), err)
	}
}
