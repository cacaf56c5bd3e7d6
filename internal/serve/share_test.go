package serve

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"aggregatord/internal/exposition"
	"aggregatord/internal/view"
)

// Scrapes that arrive while a response is made share the next one; each is as new as its
// question.
func TestShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var gathered atomic.Int64
		leave := make(chan struct{})
		var shared atomic.Int64
		h := New(Options{
			Gatherer: gatherFunc(func(context.Context) ([]*view.Snapshot, error) {
				gathered.Add(1)
				<-leave
				return []*view.Snapshot{pool()}, nil
			}),
			Observe: func(i ScrapeInfo) {
				if i.Shared {
					shared.Add(1)
				}
			},
		})
		var all sync.WaitGroup
		ask := func(target string, headers ...string) {
			all.Go(func() {
				resp := do(h, "GET", target, headers...)
				if got := body(t, resp); resp.StatusCode != 200 ||
					(len(headers) == 0 && !strings.HasPrefix(plain(exposition.Format{}), got)) {
					t.Errorf("status %d, %q", resp.StatusCode, got)
				}
			})
			synctest.Wait()
		}
		ask("/metrics")
		for range 7 {
			ask("/metrics")
		}
		ask("/metrics", "Accept-Encoding", "gzip")
		for range 3 {
			ask("/metrics", "Accept-Encoding", "gzip")
		}
		ask("/metrics?name[]=jobs")
		ask("/metrics?name[]=jobs")
		// Of each kind one is under way.
		if n := gathered.Load(); n != 3 {
			t.Errorf("%d were gathered, want 3", n)
		}
		close(leave)
		all.Wait()
		if n := gathered.Load(); n != 6 {
			t.Errorf("%d were gathered, want 6", n)
		}
		if n := shared.Load(); n != 6+2 {
			t.Errorf("%d shared a response, want 8", n)
		}
	})
}

// A scraper that goes away leaves the others their response, and when all are gone the
// work ends.
func TestShareOutlivesItsFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leave := make(chan struct{})
		var gathered, ended atomic.Int64
		h := New(Options{Gatherer: gatherFunc(func(ctx context.Context) ([]*view.Snapshot, error) {
			gathered.Add(1)
			select {
			case <-leave:
				return []*view.Snapshot{pool()}, nil
			case <-ctx.Done():
				ended.Add(1)
				return nil, ctx.Err()
			}
		})})
		ask := func(timeout string) chan *http.Response {
			c := make(chan *http.Response, 1)
			go func() { c <- do(h, "GET", "/metrics", timeoutHeader, timeout) }()
			synctest.Wait()
			return c
		}
		first := ask("1")  // alone, and it gives up
		second := ask("2") // gives up while it waits for its turn
		third := ask("60") // has joined it
		time.Sleep(5 * time.Second)
		if n := ended.Load(); n != 1 || (<-first).StatusCode != 503 || (<-second).StatusCode != 503 {
			t.Errorf("%d were given up", n)
		}
		alone := ask("1")
		time.Sleep(2 * time.Second)
		if (<-alone).StatusCode != 503 {
			t.Error("it got a response")
		}
		close(leave)
		if resp := <-third; resp.StatusCode != 200 || body(t, resp) != plain(exposition.Format{}) {
			t.Errorf("status %d", resp.StatusCode)
		}
		synctest.Wait()
		if n := gathered.Load(); n != 2 {
			t.Errorf("%d were gathered; for nobody nothing should be", n)
		}
	})
}

// A panic costs the requests that waited for its outcome, no other.
func TestSharePanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leave := make(chan struct{})
		var gathered atomic.Int64
		h := New(Options{Gatherer: gatherFunc(func(context.Context) ([]*view.Snapshot, error) {
			n := gathered.Add(1)
			<-leave
			if n == 2 {
				panic("at the disco")
			}
			return []*view.Snapshot{pool()}, nil
		})})
		var codes [5]int
		var all sync.WaitGroup
		for i := range codes {
			all.Go(func() { codes[i] = do(h, "GET", "/metrics").StatusCode })
			synctest.Wait()
		}
		close(leave)
		all.Wait()
		if codes != [5]int{200, 500, 500, 500, 500} {
			t.Errorf("status %v", codes)
		}
		if code := do(h, "GET", "/metrics").StatusCode; code != 200 {
			t.Errorf("afterwards: status %d", code)
		}
	})
}

// Buffers are given back once, by the last one: with scrapers that come and go at random
// every response is whole.
func TestShareAtRandom(t *testing.T) {
	var n atomic.Int64
	h := New(Options{Gatherer: gatherFunc(func(context.Context) ([]*view.Snapshot, error) {
		if n.Add(1)%7 == 0 {
			return nil, fmt.Errorf("no luck")
		}
		return []*view.Snapshot{pool()}, nil
	}), MaxScrapesInFlight: -1})
	want := plain(exposition.Format{})
	var all sync.WaitGroup
	for id := range 16 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(id), 1))
			for range 200 {
				ctx, cancel := context.WithCancel(t.Context())
				if r.IntN(3) == 0 {
					time.AfterFunc(time.Duration(r.IntN(100))*time.Microsecond, cancel)
				}
				w := httptest.NewRecorder()
				h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil).WithContext(ctx))
				if got := w.Body.String(); w.Code == 200 && got != "" && got != want {
					t.Errorf("status %d, %q", w.Code, got)
				}
				cancel()
			}
		})
	}
	all.Wait()
}
