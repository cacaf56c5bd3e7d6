package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// unixClient returns a client whose requests all go to one Unix socket. An application's
// socket in a test's own directory cannot be taken by anybody else, as a port can.
func unixClient(t *testing.T, socket string) *http.Client {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
		// A server that recycles its workers closes connections whenever it likes.
		DisableKeepAlives: true,
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// fetch gets a path of an application.
func fetch(client *http.Client, path string) error {
	resp, err := client.Get("http://app" + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", path, resp.Status, body)
	}
	return nil
}

// orders is what the answered requests of drive must have added up to.
type orders struct {
	// acknowledged requests were answered; failed ones may have been counted or not.
	acknowledged, failed int
	// amount is what shop.py adds to shop_orders for the acknowledged ones.
	amount float64
}

// drive sends requests to /order/0, /order/1, … over a number of connections.
func drive(t *testing.T, client *http.Client, requests, connections int) orders {
	t.Helper()
	var next atomic.Int64
	var wg sync.WaitGroup
	// mu guards sum.
	var mu sync.Mutex
	var sum orders
	for range connections {
		// Ends when all the requests have been sent.
		wg.Go(func() {
			for {
				n := int(next.Add(1) - 1)
				if n >= requests {
					return
				}
				err := fetch(client, fmt.Sprintf("/order/%d", n))
				mu.Lock()
				if err != nil {
					sum.failed++
					t.Logf("request %d: %v", n, err)
				} else {
					sum.acknowledged++
					sum.amount += 1 + float64(n%4)/8
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return sum
}

// check compares what the daemon serves for shop.py with what was acknowledged. Without
// failed requests, the totals must be equal.
func (o orders) check(v view) error {
	var errs []error
	between := func(what string, got, low, high float64) {
		if !(got >= low && got <= high) {
			errs = append(errs, fmt.Errorf("%s is %v, want %v to %v", what, got, low, high))
		}
	}
	low, high := float64(o.acknowledged), float64(o.acknowledged+o.failed)
	between("shop_requests_total", v.total("shop_requests", "shop_requests_total"), low, high)
	between("shop_latency_seconds_count", v.total("shop_latency_seconds", "shop_latency_seconds_count"), low, high)
	between("shop_amount_euros_count", v.total("shop_amount_euros", "shop_amount_euros_count"), low, high)
	between("shop_bytes_count", v.total("shop_bytes", "shop_bytes_count"), low, high)
	between("shop_orders_total", v.total("shop_orders", "shop_orders_total"), o.amount, o.amount+1.5*float64(o.failed))
	return errors.Join(errs...)
}

// monotone fails when something that only ever grows has fallen, or has gone, between
// two views of the same daemon.
func monotone(before, after view) error {
	for name, f := range before {
		if f.Type != "counter" && f.Type != "histogram" && f.Type != "summary" {
			continue
		}
		for series, x := range f.Samples {
			g := after[name]
			if g == nil {
				return fmt.Errorf("family %s has gone", name)
			}
			y, ok := g.Samples[series]
			switch {
			case !ok:
				return fmt.Errorf("%s has gone", series)
			case y < x:
				return fmt.Errorf("%s fell from %v to %v", series, x, y)
			}
		}
	}
	return nil
}

// cumulative fails when a bucket holds less than the one below it, or when a histogram's
// count is not its last bucket.
func cumulative(v view) error {
	for name, f := range v {
		if f.Type != "histogram" {
			continue
		}
		for series, x := range f.Samples {
			sample, labels, _ := strings.Cut(series, "{")
			if sample != name+"_bucket" || !strings.Contains(labels, `le="+Inf"`) {
				continue
			}
			rest := strings.TrimSuffix(strings.NewReplacer(`,le="+Inf"`, "", `le="+Inf",`, "", `le="+Inf"`, "").Replace(labels), "}")
			count := name + "_count"
			if rest != "" {
				count += "{" + rest + "}"
			}
			if y := v.value(name, count); !same(x, y) {
				return fmt.Errorf("%s is %v, but %s is %v", series, x, count, y)
			}
		}
	}
	return nil
}

// watcher scrapes the daemon again and again while something happens.
type watcher struct {
	t      *testing.T
	cancel context.CancelFunc
	done   chan struct{}
	// scrapes is how often the daemon was scraped; it may be read after finish.
	scrapes int
}

// watchScrapes scrapes in all formats, until finish, and fails the test when a response
// does not parse, a counter falls or a histogram contradicts itself.
func (d *daemon) watchScrapes() *watcher {
	ctx, cancel := context.WithCancel(d.t.Context())
	w := &watcher{t: d.t, cancel: cancel, done: make(chan struct{})}
	// Ends when finish cancels the context.
	go func() {
		defer close(w.done)
		before := view{}
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			scrape, format := d.text, "text"
			switch {
			case n%50 == 25:
				scrape, format = d.openMetrics, "OpenMetrics"
			case n%2 == 1:
				scrape, format = d.protobuf, "protobuf"
			}
			after, err := scrape()
			if err == nil && format != "OpenMetrics" {
				// The strict parser keeps the spelling of bounds and would seem to have other series.
				err = monotone(before, after)
				before = after
			}
			if err == nil {
				err = cumulative(after)
			}
			if err != nil {
				d.t.Errorf("scrape %d, %s: %v", n, format, err)
				return
			}
			w.scrapes++
		}
	}()
	d.t.Cleanup(func() { w.cancel(); <-w.done })
	return w
}

// finish ends the scraping and says how many scrapes there were.
func (w *watcher) finish() int {
	w.cancel()
	<-w.done
	return w.scrapes
}
