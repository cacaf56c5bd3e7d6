package integration

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/chromedp/chromedp"
)

// picturesEnv has the screenshots of the documentation taken anew.
const picturesEnv = "AGGREGATORD_PICTURES"

// TestPictures shows the demo as the pictures of the documentation do: each must be there, and
// what it shows must still be on the page.
func TestPictures(t *testing.T) {
	w := newBrowser(t)
	d := startDaemon(t, nil, "demo", "--workers", "6", "--kill-every", "3s", "--dir", sourceDir(t))
	images := filepath.Join(moduleRoot, "docs", "images")
	b := w.open(t, d.URL+"/", chromedp.EmulateViewport(1120, 760), colours("light"))
	b.says("main", "Busiest metrics", "http_requests", "Time of a scrape", "Pools")
	for range 3 {
		d.mustText()
	}
	scraped := `!document.querySelector(".number b").textContent.includes("none")`
	b.until("scrapes to show", scraped)
	if os.Getenv(picturesEnv) != "" {
		t.Setenv(screenshotsEnv, images)
		// A chart needs points, and workers need to die.
		b.until("deaths of workers", `/[1-9]\d* died/.test(document.querySelector("main").innerText)`)
		for i := range 6 {
			d.mustText()
			b.until("the next look", `document.querySelectorAll("main tbody tr").length >= 4`)
			b.do(chromedp.Sleep(2500 * 1e6))
			_ = i
		}
	}
	b.picture("overview")
	b.goTo("#metric/http_request_duration_seconds", "http_request_duration_seconds")
	b.says("main", "Distribution", "p50", "p99")
	b.picture("histogram")
	for _, name := range []string{"overview", "histogram"} {
		if _, err := os.Stat(filepath.Join(images, name+".png")); err != nil {
			t.Errorf("%v; make pictures takes it", err)
		}
	}
	b.quiet()
}
