package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// pageState is what the daemon of a test is like, and what its page says then.
type pageState struct {
	root bool
	// make returns the flags of the daemon, and as whom it runs.
	make func(t *testing.T, dir string) (flags []string, attr *syscall.SysProcAttr)
	// overview, workers and problems are what these sections say.
	overview, workers, problems []string
	// pool is one that the list of pools is searched for, if there is such a list.
	pool string
}

var pageNobody = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}

var pageStates = map[string]pageState{
	"missing_directory": {
		make: func(_ *testing.T, dir string) ([]string, *syscall.SysProcAttr) {
			return []string{"--dir", dir + "/missing"}, nil
		},
		overview: []string{"/missing", "unknown: the directory cannot be read"},
		workers:  []string{"/missing cannot be read"},
		problems: []string{"does not exist. Make it before", "No directory can be read.", "There was no error."},
	},
	"one_of_several_missing": {
		make: func(t *testing.T, dir string) ([]string, *syscall.SysProcAttr) {
			hits := newWriter(t, dir, "counter_1.db")
			hits.set(sample{"hits", "hits_total", []string{"status", "200"}, 40}, "Requests.")
			return []string{"--dir", "web=" + dir, "--dir", "jobs=" + dir + "/missing"}, nil
		},
		overview: []string{"Pool web", "Pool jobs", "/missing"},
		workers:  []string{"web", "alive"},
	},
	"empty": {
		make: func(_ *testing.T, dir string) ([]string, *syscall.SysProcAttr) {
			return []string{"--dir", dir}, nil
		},
		overview: []string{"watched", "point Prometheus at this address"},
		workers:  []string{"There is no file of a worker"},
	},
	"no_permission": {
		root: true,
		make: func(t *testing.T, dir string) ([]string, *syscall.SysProcAttr) {
			if err := os.Chmod(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			return []string{"--dir", dir}, pageNobody
		},
		overview: []string{"permission denied", "opens when the directory can be read"},
		workers:  []string{"cannot be read"},
		problems: []string{"may not list", "Run the daemon as the workers' user."},
	},
	"failed_archive": {
		root: true,
		make: func(t *testing.T, dir string) ([]string, *syscall.SysProcAttr) {
			hits := newWriter(t, dir, "counter_1.db")
			hits.set(sample{"hits", "hits_total", nil, 40}, "Requests.")
			if err := os.Chmod(filepath.Join(dir, "counter_1.db"), 0o644); err != nil {
				t.Fatal(err)
			}
			return []string{"--dir", dir}, pageNobody
		},
		overview: []string{"permission denied", "Run the daemon as the workers' user."},
		workers:  []string{"1 worker", "alive"},
	},
	"hundred_pools": {
		make: func(t *testing.T, dir string) (flags []string, _ *syscall.SysProcAttr) {
			for i := range 100 {
				name := fmt.Sprintf("pool-%02d", i)
				path := filepath.Join(dir, name)
				flags = append(flags, "--dir", name+"="+path)
				if i == 50 {
					continue // it is missing
				}
				if err := os.Mkdir(path, 0o755); err != nil {
					t.Fatal(err)
				}
				w := newWriter(t, path, "counter_1.db")
				w.set(sample{"hits", "hits_total", nil, float64(i)}, "Requests.")
			}
			return flags, nil
		},
		overview: []string{"pool-50", "cannot be read", "pool-99", "All 100 pools"},
		workers:  []string{"pool-00"},
		pool:     "pool-73",
	},
	"thousand_workers": {
		make: func(t *testing.T, dir string) ([]string, *syscall.SysProcAttr) {
			for i := range 1000 {
				w := newWriter(t, dir, fmt.Sprintf("counter_%d.db", i+1))
				w.set(sample{"hits", "hits_total", nil, 1}, "Requests.")
			}
			return []string{"--dir", dir, "--archive.disable"}, nil
		},
		overview: []string{"1,000", "off (--archive.disable)"},
		workers:  []string{"1–50 of 1,000"},
		problems: []string{"There is no problem.", "Every file that is there can be read.", "All files agree"},
	},
	"ten_thousand_series": {
		make: func(t *testing.T, dir string) ([]string, *syscall.SysProcAttr) {
			w := newWriter(t, dir, "counter_1.db")
			for i := range 10000 {
				w.set(sample{"hits", "hits_total", []string{"path", fmt.Sprintf("/item/%05d", i), "site", "shop"}, float64(i)}, "Requests.")
			}
			return []string{"--dir", dir}, nil
		},
		overview: []string{"10,000"},
		workers:  []string{"10,000"},
	},
	"hostile_names": {
		make: func(t *testing.T, _ string) ([]string, *syscall.SysProcAttr) {
			dir, _ := pageDir(t)
			return []string{"--dir", `"><script>alert(1)<` + "=" + dir}, nil
		},
		overview: []string{`Pool "><script>alert(1)<`},
		workers:  []string{"<img src=x onerror=alert(1)>"},
	},
}

// TestPageStates walks through every section in each state that a daemon can be in, by keyboard
// alone, at the size of a desk and of a phone, light and dark.
func TestPageStates(t *testing.T) {
	w := newBrowser(t)
	for name, state := range pageStates {
		t.Run(name, func(t *testing.T) {
			if state.root {
				needRoot(t)
			}
			flags, attr := state.make(t, sourceDir(t))
			d := serveAs(t, attr, flags...)
			for _, view := range []struct {
				name   string
				before []chromedp.Action[chromedp.Void]
			}{
				{"desk-light", []chromedp.Action[chromedp.Void]{colours("light")}},
				{"phone-dark", []chromedp.Action[chromedp.Void]{
					chromedp.EmulateViewport(360, 740, chromedp.EmulateMobile),
					colours("dark"),
				}},
			} {
				b := w.open(t, d.URL+"/", view.before...)
				b.says("main", state.overview...)
				for key, title := range []string{"Overview", "Workers", "Metrics", "Archive", "Problems", "Configuration"} {
					b.do(chromedp.KeyEvent(fmt.Sprint(key + 1)))
					b.until("the section "+title,
						fmt.Sprintf(`document.title.includes(%s) && document.querySelector("nav a[aria-current]").textContent.startsWith(%s)`, quoted(title), quoted(title)))
					switch title {
					case "Workers":
						b.says("main", state.workers...)
					case "Problems":
						b.says("main", state.problems...)
					}
					b.fits(title)
					b.picture("state-" + name + "-" + view.name + "-" + strings.ToLower(title))
				}
				if state.pool != "" {
					b.goTo("#pools", "Pools")
					b.until("the pool with a problem first", `document.querySelector("main tbody tr")?.innerText.includes("pool-50")`)
					b.says("main", "1–50 of 100", "configuration")
					b.fits("Pools")
					b.picture("state-" + name + "-" + view.name + "-pools")
					b.typeInto("main input[type=search]", state.pool)
					b.until("one pool", `document.querySelectorAll("main tbody tr").length === 1`)
					b.says("main tbody", state.pool)
					b.goTo("#overview", "Overview") // out of the field, in which keys are letters
				}
				b.keys()
				b.quiet()
			}
		})
	}
}

// fits checks that nothing is cut off: the section is not wider than the window, and all
// links of the navigation are in sight.
func (b *tab) fits(section string) {
	b.t.Helper()
	if over := value[float64](b, "document.documentElement.scrollWidth - document.documentElement.clientWidth"); over > 0 {
		b.t.Errorf("%s is %v pixels wider than the window", section, over)
	}
	if n := value[float64](b,
		`[...document.querySelectorAll("nav a")].filter((a) => { const r = a.getBoundingClientRect(); return r.left < 0 || r.right > innerWidth || !r.width; }).length`); n != 0 {
		b.t.Errorf("%s: %v links of the navigation are out of sight", section, n)
	}
}

// keys goes into the first row of each list and back, and sees where the focus is.
func (b *tab) keys() {
	b.t.Helper()
	for _, key := range []string{"2", "3"} {
		b.do(chromedp.KeyEvent(key))
		title := map[string]string{"2": "Workers", "3": "Metrics"}[key]
		b.until("the section "+title, fmt.Sprintf("document.title.includes(%s)", quoted(title)))
		if value[float64](b, `document.querySelectorAll("main [data-row]").length`) == 0 {
			continue
		}
		b.do(chromedp.KeyEvent(kb.ArrowDown))
		b.until("a row to have the focus", `document.activeElement.matches("main [data-row]")`)
		row := value[string](b, "document.activeElement.textContent")
		b.do(chromedp.KeyEvent(kb.Enter))
		b.until("the page of "+row,
			fmt.Sprintf(`location.hash.includes("/") && document.querySelector("main h2")?.textContent.includes(%s)`, quoted(row)))
		b.until("the focus to be in the section", `document.getElementById("main").contains(document.activeElement)`)
		b.fits(row)
		b.do(chromedp.KeyEvent(kb.Escape))
		b.until("the way back", fmt.Sprintf("document.title.includes(%s)", quoted(title)))
		b.until("the focus to be on the row that was left", fmt.Sprintf("document.activeElement.textContent === %s", quoted(row)))
	}
}
