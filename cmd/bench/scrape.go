package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// A scraper asks one server again and again over one connection, as Prometheus does. Its
// Accept header is empty, so that it gets text 0.0.4. It is not safe for several
// goroutines at once.
type scraper struct {
	client http.Client
	url    string
	body   []byte
	last   time.Duration // how long the last scrape took
}

func newScraper(url string) *scraper {
	// Large reads keep the client's own part small.
	const readBytes = 256 << 10
	return &scraper{url: url, body: make([]byte, 0, readBytes), client: http.Client{
		Timeout: patience,
		Transport: &http.Transport{
			DisableCompression: true, ReadBufferSize: readBytes,
			DialContext: (&net.Dialer{}).DialContext,
		},
	}}
}

func (s *scraper) close() { s.client.CloseIdleConnections() }

// A statusError is the error of a response that is not OK.
type statusError int

func (e statusError) Error() string { return "the server answers " + http.StatusText(int(e)) }

// scrape gets the response once, which stays in s.body until the next time, and returns
// how long it took from the request to the last byte.
func (s *scraper) scrape(ctx context.Context, packed bool) (time.Duration, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return 0, err
	}
	if packed {
		req.Header.Set("Accept-Encoding", "gzip")
	}
	start := time.Now()
	resp, err := s.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	s.body = s.body[:0]
	if n := resp.ContentLength; n > int64(cap(s.body)) {
		s.body = make([]byte, 0, n+n/8)
	}
	for {
		if len(s.body) == cap(s.body) {
			s.body = append(s.body, make([]byte, len(s.body))...)[:len(s.body)]
		}
		n, err := resp.Body.Read(s.body[len(s.body):cap(s.body)])
		s.body = s.body[:len(s.body)+n]
		if err == io.EOF {
			break
		} else if err != nil {
			return 0, err
		}
	}
	took := time.Since(start)
	s.last = took
	if resp.StatusCode != http.StatusOK {
		return took, statusError(resp.StatusCode)
	}
	if got := resp.Header.Get("Content-Encoding") == "gzip"; got != packed {
		return took, fmt.Errorf("%s: asked for gzip %v, got it %v", s.url, packed, got)
	}
	return took, nil
}

// value returns the value of a sample without labels, or with the labels as they are
// written, from the last response; NaN if it is not there.
func (s *scraper) value(sample string) float64 {
	i := bytes.Index(s.body, []byte("\n"+sample+" "))
	if i < 0 {
		return nan
	}
	rest := s.body[i+len(sample)+2:]
	v, err := strconv.ParseFloat(string(rest[:max(bytes.IndexByte(rest, '\n'), 0)]), 64)
	if err != nil {
		return nan
	}
	return v
}

// scrapeTogether lets all scrapers ask at once and returns how long it took until each had
// its response.
func scrapeTogether(ctx context.Context, scrapers []*scraper, packed bool) (time.Duration, error) {
	var wg sync.WaitGroup
	errs := make([]error, len(scrapers))
	begin := make(chan struct{})
	for i, s := range scrapers {
		// Ends with its one scrape.
		wg.Go(func() {
			<-begin
			_, errs[i] = s.scrape(ctx, packed)
		})
	}
	start := time.Now()
	close(begin)
	wg.Wait()
	took := time.Since(start)
	for _, err := range errs {
		if err != nil {
			return 0, err
		}
	}
	return took, nil
}
