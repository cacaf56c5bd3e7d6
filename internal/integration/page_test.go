package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"aggregatord/internal/metric"
	"aggregatord/internal/store"
)

// screenshotsEnv names a directory for pictures of the page, to be looked at by people.
const screenshotsEnv = "AGGREGATORD_SCREENSHOTS"

// tab is a page in a headless Chromium.
type tab struct {
	t   *testing.T
	ctx context.Context
}

// browser is a headless Chromium.
type browser struct{ ctx context.Context }

// newBrowser starts a Chromium, which ends with the test.
func newBrowser(t *testing.T) browser {
	t.Helper()
	path := peer(t, "chromium", "apt-get install chromium")
	opts := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.WindowSize(1280, 900), chromedp.UserDataDir(t.TempDir()))
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), opts...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank")); err != nil {
		t.Fatalf("start %s: %v", path, err)
	}
	return browser{ctx}
}

// command sends a command of the DevTools protocol.
func command[P, R any](c cdp.Command[P, R], params P) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, c, params)
		return err
	})
}

// listen has a page keep account of uncaught errors, violations of its policy and dialogs.
const listen = `window.complaints = [];
	addEventListener("error", (e) => complaints.push("error: " + e.message + " " + e.filename + ":" + e.lineno));
	addEventListener("unhandledrejection", (e) => complaints.push("rejection: " + (e.reason && e.reason.stack || e.reason)));
	addEventListener("securitypolicyviolation", (e) => complaints.push("policy: " + e.violatedDirective + " " + e.blockedURI));
	console.error = (...what) => complaints.push("console: " + what.join(" "));
	window.alert = (text) => complaints.push("dialog: " + text);`

// colours has pages see a preference of the user.
func colours(theme string) chromedp.Action[chromedp.Void] {
	return command(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: theme}},
	})
}

// open shows an address in a new tab.
func (w browser) open(t *testing.T, url string, before ...chromedp.Action[chromedp.Void]) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(w.ctx)
	t.Cleanup(cancel)
	b := &tab{t: t, ctx: ctx}
	b.do(chromedp.Navigate("about:blank"))
	b.ctx, cancel = context.WithTimeout(ctx, 2*time.Minute)
	t.Cleanup(cancel)
	b.do(command(page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: listen}))
	b.do(before...)
	b.do(chromedp.Navigate(url))
	b.until("the page to have a section", `document.querySelector("main > div") !== null`)
	return b
}

func (b *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, actions...); err != nil {
		b.t.Fatal(err)
	}
}

// value evaluates an expression in a page.
func value[T any](b *tab, expression string) T {
	b.t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		b.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// until waits for an expression to become true.
func (b *tab) until(what, expression string) {
	b.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		ok, err := chromedp.Run(b.ctx, chromedp.Evaluate[bool](expression))
		if err == nil && ok {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("waited in vain for %s: %s is %v, %v; the page says\n%s", what, expression, ok, err, b.text("body"))
		}
		time.Sleep(30 * time.Millisecond)
	}
}

// says waits until an element has all the texts.
func (b *tab) says(selector string, texts ...string) {
	b.t.Helper()
	for _, text := range texts {
		b.until(fmt.Sprintf("%s to say %q", selector, text),
			fmt.Sprintf("(document.querySelector(%s)?.innerText || '').includes(%s)", quoted(selector), quoted(text)))
	}
}

// quoted spells a text as a string of JavaScript.
func quoted(text string) string {
	b, err := json.Marshal(text)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func (b *tab) text(selector string) string {
	b.t.Helper()
	return value[string](b, fmt.Sprintf("document.querySelector(%s)?.innerText || ''", quoted(selector)))
}

// click clicks on the first element of a kind that has exactly this text, where a user would.
func (b *tab) click(selector, text string) {
	b.t.Helper()
	find := fmt.Sprintf("[...document.querySelectorAll(%s)].find((e) => e.textContent === %s)", quoted(selector), quoted(text))
	b.until("something to click on", find+" !== undefined")
	at := value[[]float64](b,
		fmt.Sprintf(`(() => { const e = %s; e.scrollIntoView({block: "center"}); const r = e.getClientRects()[0]; return [r.left + r.width / 2, r.top + r.height / 2]; })()`, find))
	b.do(chromedp.MouseClickXY(at[0], at[1]))
}

// typeInto types into the first element of a kind.
func (b *tab) typeInto(selector, text string) {
	b.t.Helper()
	b.do(chromedp.Evaluate[chromedp.Void](fmt.Sprintf("document.querySelector(%s).focus()", quoted(selector))), chromedp.KeyEvent(text))
}

// choose chooses an entry of a list.
func (b *tab) choose(label, entry string) {
	b.t.Helper()
	b.do(chromedp.Evaluate[chromedp.Void](fmt.Sprintf(`{ const list = document.querySelector('select[aria-label="%s"]'); list.value = %s; list.dispatchEvent(new Event("change")); }`, label, quoted(entry))))
}

// slash is a stroke of the key / as a keyboard makes it: what the page does about it decides
// whether a character is typed.
var slash = chromedp.Steps(
	command(input.DispatchKeyEvent, input.DispatchKeyEventParams{
		Type: input.DispatchKeyEventTypeKeyDown, Key: "/", Code: "Slash",
		Text: "/", UnmodifiedText: "/", WindowsVirtualKeyCode: 191,
	}),
	command(input.DispatchKeyEvent, input.DispatchKeyEventParams{
		Type: input.DispatchKeyEventTypeKeyUp, Key: "/", Code: "Slash",
		WindowsVirtualKeyCode: 191,
	}),
)

// goTo shows another section, as a link does.
func (b *tab) goTo(hash, title string) {
	b.t.Helper()
	b.do(chromedp.Evaluate[chromedp.Void]("location.hash = " + quoted(hash)))
	b.until("the section "+title, fmt.Sprintf("document.title.includes(%s)", quoted(title)))
}

// quiet checks that nothing went wrong in the page.
func (b *tab) quiet() {
	b.t.Helper()
	for _, c := range value[[]string](b, "window.complaints") {
		b.t.Errorf("the page has %s", c)
	}
}

// picture keeps a screenshot, if they are wanted.
func (b *tab) picture(name string) {
	b.t.Helper()
	dir := os.Getenv(screenshotsEnv)
	if dir == "" {
		return
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	png, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// sample is an entry of a source file: family, sample name, labels as name, value.
type sample struct {
	family, name string
	labels       []string
	value        float64
}

// writer plays a worker that writes one source file.
type writer struct {
	t *testing.T
	*store.Writer
}

func (w writer) set(s sample, help string) {
	w.t.Helper()
	k := metric.Key{Family: s.family, Help: help, Series: metric.Series{Sample: s.name}}
	for i := 0; i < len(s.labels); i += 2 {
		k.Series.Labels = append(k.Series.Labels, metric.Label{Name: s.labels[i], Value: s.labels[i+1]})
	}
	slot, err := w.Slot(store.AppendKey(nil, k))
	if err != nil {
		w.t.Fatal(err)
	}
	w.Set(slot, s.value, 0)
}

func newWriter(t *testing.T, dir, base string) writer {
	t.Helper()
	w, err := store.OpenWriter(filepath.Join(dir, base), store.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return writer{t, w}
}

// markup is what a hostile or careless worker may write where a name is expected.
const markup = `"><img src=x onerror="window.pwned=1"><script>window.pwned=1</script>`

// pageDir is a directory with something of everything for the page to show.
func pageDir(t *testing.T) (dir string, hits writer) {
	t.Helper()
	dir = sourceDir(t)
	hits = newWriter(t, dir, "counter_101.db")
	hits.set(sample{"hits", "hits_total", []string{"path", "/"}, 40}, "Requests answered.")
	hits.set(sample{"hits", "hits_total", []string{"path", "/cart"}, 3}, "Requests answered.")
	other := newWriter(t, dir, "counter_102.db")
	other.set(sample{"hits", "hits_total", []string{"path", "/"}, 2}, "Requests answered.")
	dead := newWriter(t, dir, "counter_103.db")
	dead.set(sample{"hits", "hits_total", []string{"path", "/"}, 100}, "Requests answered.")
	dead.Close()
	gauge := newWriter(t, dir, "gauge_livesum_101.db")
	gauge.set(sample{"inprogress_requests", "inprogress_requests", nil, 2}, "Requests being worked on.")
	all := newWriter(t, dir, "gauge_all_101.db")
	all.set(sample{"temperature_celsius", "temperature_celsius", nil, math.NaN()}, "Temperature.")
	hist := newWriter(t, dir, "histogram_101.db")
	for bound, n := range map[string]float64{"0.1": 5, "1.0": 3, "+Inf": 1} {
		hist.set(sample{"latency_seconds", "latency_seconds_bucket", []string{"le", bound}, n}, "Time to answer.")
	}
	hist.set(sample{"latency_seconds", "latency_seconds_sum", nil, 4.5}, "Time to answer.")
	evil := newWriter(t, dir, "counter_<img src=x onerror=alert(1)>.db")
	evil.set(sample{"evil" + markup, "evil" + markup + "_total", []string{"label" + markup, markup}, 1}, markup)
	evil.set(sample{"shouts", "shouts_total", []string{"word", markup}, 1}, markup)
	many := newWriter(t, dir, "counter_104.db")
	for i := range 120 {
		many.set(sample{"crowd", "crowd_total", []string{"item", fmt.Sprintf("item-%03d", i)}, float64(i)}, "Many series.")
		family := fmt.Sprintf("filler_%03d_with_a_rather_long_name_as_they_occur", i)
		many.set(sample{family, family + "_total", nil, 1}, "One of many families.")
	}
	if err := os.WriteFile(filepath.Join(dir, "counter_broken.db"), []byte("\xff\xff\xff\xff<b>no file</b>"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, hits
}

// TestPage looks at the status page of a real daemon with a real browser.
func TestPage(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells which processes are dead")
	}
	w := newBrowser(t)
	dir, hits := pageDir(t)
	// The daemon is stopped and started again below, so it needs a port of its own.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	config := filepath.Join(t.TempDir(), "aggregatord.yml")
	if err := os.WriteFile(config, []byte("metrics:\n  - match: temperature_celsius\n    gauge_mode: max\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	flags := []string{"--dir", dir, "--config.file", config, "--web.listen-address", address}
	d := serve(t, flags...)
	url := "http://" + address + "/"
	archived := func() error {
		out, err := get(d, "/api/v1/status")
		if err == nil && !strings.Contains(out, `"folded_files":1`) {
			err = fmt.Errorf("the dead worker's file is not archived: %s", out)
		}
		return err
	}
	eventually(t, patience, archived)

	t.Run("content", func(t *testing.T) {
		b := w.open(t, url)
		b.says("main", "Workers", "Samples served", "Time of a scrape", "Busiest metrics", dir, "read lease", "tmpfs", "open",
			"1 file cannot be read")
		b.says("#state", "1 problem")
		b.picture("overview-light")
		b.goTo("#workers", "Workers")
		b.says("main", "101", "102", "alive", "lease", "<img src=x onerror=alert(1)>")
		b.picture("workers-light")
		b.goTo("#worker//101", "Worker 101")
		b.says("main", "gauge_livesum_101.db", "histogram", "alive", "What it counts", `hits_total{path="/cart"}`)
		b.picture("worker-light")
		b.goTo("#archive", "Archive")
		b.says("main", ".aggregatord.archive", "last time", "1 file, 64.0\u00a0KiB", "failures")
		b.picture("archive-light")
		b.goTo("#problems", "Problems")
		b.says("main", "counter_broken.db", "-1 bytes are used", "All files agree", "used_negative", "series per pool", "1,000,000")
		b.picture("problems-light")
		b.goTo("#config", "Configuration")
		b.says("main", "--dir", dir, "--archive.gauge-retention", "gauge_mode: max", config)
		b.picture("config-light")
		b.quiet()
	})

	t.Run("metrics", func(t *testing.T) {
		b := w.open(t, url+"#metrics")
		b.says("main", "crowd", "counter", "Many series.", "filler_000", "1–50 of 127")
		if n := value[float64](b, `document.querySelectorAll("main tbody tr").length`); n != 50 {
			t.Errorf("%v rows", n)
		}
		b.picture("metrics-light")
		b.typeInto(`input[type="search"]`, "TEMPERATURE")
		b.until("the search", `document.querySelectorAll("main tbody tr").length === 1`)
		b.says("main tbody", "temperature_celsius", "gauge", "max (rule metrics[0])")
		b.do(chromedp.KeyEvent(kb.Escape))
		b.until("the search to end", `document.querySelectorAll("main tbody tr").length === 50`)
		b.click("th button", "series")
		b.until("the order to be told", `document.querySelectorAll('th[aria-sort="descending"]').length === 1`)
		b.until("the order", `document.querySelector("main tbody tr").innerText.startsWith("crowd")`)
		b.click("th button", "series")
		b.until("the other order",
			`document.querySelectorAll('th[aria-sort="ascending"]').length === 1 && !document.querySelector("main tbody tr").innerText.startsWith("crowd")`)
		b.choose("Type", "histogram")
		b.until("the type", `document.querySelectorAll("main tbody tr").length === 1`)
		b.says("main tbody", "latency_seconds")
		b.quiet()
	})

	t.Run("live", func(t *testing.T) {
		b := w.open(t, url+"#metric/hits")
		b.do(chromedp.Evaluate[chromedp.Void]("window.mark = 1"))
		b.says("main", `hits_total{path="/"}`, "142", "Requests answered.")
		b.click("main a", `hits_total{path="/"}`)
		b.says("#detail", "What made it", "the sum of all", "archive", "alive file of worker 101", "counter_102.db", "100", "40")
		hits.set(sample{"hits", "hits_total", []string{"path", "/"}, 1040}, "Requests answered.")
		b.says("main", "1,142")
		b.says("#detail", "1,040")
		b.until("a line in the chart", `(document.querySelector("#detail svg path.line").getAttribute("d") || "").length > 10`)
		b.says("#detail .axis", "per second")
		if value[float64](b, "window.mark || 0") != 1 {
			t.Error("the page was loaded anew")
		}
		b.picture("series-light")
		b.quiet()
	})

	t.Run("markup", func(t *testing.T) {
		b := w.open(t, url+"#metrics")
		b.typeInto(`input[type="search"]`, "evil")
		b.until("the search", `document.querySelectorAll("main tbody tr").length === 1`)
		b.says("main tbody", "evil"+markup)
		b.do(chromedp.Evaluate[chromedp.Void](`document.querySelector("main tbody a").click()`))
		b.until("the family", `location.hash.startsWith("#metric/evil")`)
		b.says("main h2", markup)
		b.says("main p", markup)
		b.says("main > div > .panel.flush", "<img src=x onerror")
		b.do(chromedp.Evaluate[chromedp.Void](`document.querySelector("main tbody a").click()`))
		b.says("#detail", "What made it", "<img src=x onerror=alert(1)>")
		b.picture("markup-light")
		b.goTo("#workers", "Workers")
		b.click("main a", "<img src=x onerror=alert(1)>")
		b.says("main h2", "<img src=x onerror=alert(1)>")
		b.goTo("#problems", "Problems")
		if n := value[float64](b, `document.querySelectorAll("img, script:not([src]), iframe, object").length`); n != 0 {
			t.Errorf("%v elements were made of text", n)
		}
		if value[float64](b, "window.pwned || 0") != 0 {
			t.Error("a worker's text was run")
		}
		b.quiet()
		// Even if it got in, it would not run.
		b.do(chromedp.Evaluate[chromedp.Void](`document.body.insertAdjacentHTML("beforeend", '<img src=x onerror="window.pwned=1"><p style="color:red" id="styled">x</p>');
			document.body.append(Object.assign(document.createElement("script"), {textContent: "window.pwned=1"}))`))
		time.Sleep(300 * time.Millisecond)
		if value[float64](b, "window.pwned || 0") != 0 {
			t.Error("the policy lets inline scripts run")
		}
		if value[float64](b, `getComputedStyle(document.getElementById("styled")).color === "rgb(255, 0, 0)" ? 1 : 0`) != 0 {
			t.Error("the policy lets inline styles be")
		}
	})

	t.Run("keyboard", func(t *testing.T) {
		b := w.open(t, url)
		b.do(chromedp.KeyEvent("2"))
		b.until("the workers", `location.hash === "#workers" && document.title.includes("Workers")`)
		b.do(chromedp.KeyEvent("3"))
		b.until("the metrics", `document.title.includes("Metrics")`)
		b.do(slash)
		b.until("the search to have the focus", `document.activeElement.type === "search"`)
		b.do(chromedp.KeyEvent("hits"))
		b.until("the search", `document.querySelectorAll("main tbody tr").length === 1`)
		b.do(chromedp.KeyEvent(kb.ArrowDown))
		b.until("the row to have the focus", `document.activeElement.textContent === "hits"`)
		b.do(chromedp.KeyEvent(kb.Enter))
		b.until("the family", `location.hash === "#metric/hits" && document.title.includes("hits")`)
		b.do(slash, chromedp.KeyEvent(kb.ArrowDown), chromedp.KeyEvent(kb.ArrowDown))
		b.until("the second series to have the focus", `document.activeElement.textContent.includes("/cart")`)
		// Rows stay the same nodes while they are refreshed.
		time.Sleep(2500 * time.Millisecond)
		b.until("the focus to stay", `document.activeElement.textContent.includes("/cart")`)
		b.do(chromedp.KeyEvent(kb.Enter))
		b.says("#detail", "What made it", "worker 101")
		b.do(chromedp.KeyEvent(kb.Escape))
		b.until("the detail to close", `document.getElementById("detail").hidden`)
		b.do(chromedp.KeyEvent(kb.Escape))
		b.until("the way back", `location.hash === "#metrics"`)
		// Everything that can be clicked can be reached.
		if n := value[float64](b,
			`[...document.querySelectorAll("a, button, input, select")].filter((e) => e.tabIndex < 0).length`); n != 0 {
			t.Errorf("%v controls cannot be reached by keyboard", n)
		}
		b.quiet()
	})

	t.Run("narrow and dark", func(t *testing.T) {
		b := w.open(t, url, colours("dark"))
		if ground := value[string](b, "getComputedStyle(document.body).backgroundColor"); ground != "rgb(18, 23, 26)" {
			t.Errorf("the ground is %s", ground)
		}
		b.picture("overview-dark")
		b.goTo("#metric/hits", "hits")
		b.do(chromedp.Evaluate[chromedp.Void](`document.querySelector("main tbody a").click()`))
		b.says("#detail", "worker 101")
		b.picture("series-dark")
		themes := []string{"dark"}
		if os.Getenv(screenshotsEnv) != "" {
			themes = []string{"light", "dark"}
		}
		for _, theme := range themes {
			b.do(chromedp.EmulateViewport(360, 740, chromedp.EmulateMobile), colours(theme))
			for hash, title := range map[string]string{
				"#overview": "Overview", "#workers": "Workers", "#metrics": "Metrics", "#metric/hits": "hits", "#archive": "Archive",
				"#problems": "Problems",
				"#config":   "Configuration", "#worker//101": "Worker 101", "#metric/shouts": "shouts",
			} {
				b.goTo(hash, title)
				if over := value[float64](b, "document.documentElement.scrollWidth - document.documentElement.clientWidth"); over > 0 {
					t.Errorf("%s is %v pixels wider than the phone", hash, over)
				}
				b.picture("phone-" + theme + "-" + strings.NewReplacer("#", "", "/", "-").Replace(hash))
			}
		}
		b.quiet()
	})

	t.Run("gone", func(t *testing.T) {
		b := w.open(t, url+"#workers")
		b.says("main", "102")
		d.stop()
		b.until("the banner", `!document.getElementById("gone").hidden`)
		b.says("#gone", "has not answered since", "Trying again")
		b.says("main", "102") // what was seen stays
		b.says("#state", "no answer")
		b.picture("gone-light")
		d = serve(t, flags...)
		b.until("the page to recover by itself", `document.getElementById("gone").hidden && !document.body.classList.contains("stale")`)
		b.says("#state", "up ")
		b.quiet()
	})
}

// get fetches a path of the daemon.
func get(d *daemon, path string) (string, error) {
	resp, err := d.client.Get(d.URL + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}
