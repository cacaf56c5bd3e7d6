package serve

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
)

// A Target is one pool, for service discovery.
type Target struct {
	Pool string
	// Labels are the pool's, by name; those that begin with __meta_ are for relabelling only.
	Labels map[string]string
}

// targetsPath is where Prometheus asks for targets, readyPath where the health of all or of
// one pool is told.
const targetsPath, readyPath = "/-/sd", "/-/ready"

// targets answers as http_sd_configs of Prometheus wants it: one group with one target for each
// pool. The address is that by which we were asked, which the scraper can reach.
func (s *Server) targets(w http.ResponseWriter, r *http.Request) {
	if !allowed(w, r) {
		return
	}
	if s.opts.Targets == nil {
		sendLine(w, http.StatusNotFound, "no targets are told here")
		return
	}
	host, scheme, prefix := r.Host, "", ""
	if r.TLS != nil {
		scheme = "https"
	}
	if u := s.opts.ExternalURL; u != nil {
		host, scheme, prefix = u.Host, u.Scheme, u.Path
	}
	type group struct {
		Targets []string          `json:"targets"`
		Labels  map[string]string `json:"labels"`
	}
	groups := []group{} // not null, which Prometheus refuses
	for _, t := range s.opts.Targets() {
		labels := map[string]string{}
		maps.Copy(labels, t.Labels)
		path := s.opts.TelemetryPath
		if t.Pool != "" {
			path = poolsPath + t.Pool + poolMetrics
		}
		labels["__metrics_path__"] = prefix + path
		if scheme != "" {
			labels["__scheme__"] = scheme
		}
		groups = append(groups, group{[]string{host}, labels})
	}
	body, err := json.Marshal(groups)
	if err != nil {
		sendLine(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	send(w, http.StatusOK, append(body, '\n')) //nolint:errcheck // the client is gone, and nobody else waits
}

// ready tells whether we, or the pool that the request names, can be scraped.
func (s *Server) ready(w http.ResponseWriter, r *http.Request, pool string) {
	if !allowed(w, r) {
		return
	}
	why := s.notReady()
	if why == "" && pool != "" && s.opts.PoolReady != nil {
		err := s.opts.PoolReady(pool)
		if errors.Is(err, ErrNoPool) {
			sendLine(w, http.StatusNotFound, err.Error())
			return
		}
		if err != nil {
			why = "not ready: " + err.Error()
		}
	}
	switch {
	case why != "":
		sendLine(w, http.StatusServiceUnavailable, why)
	case pool != "":
		sendLine(w, http.StatusOK, fmt.Sprintf("pool %q is ready", pool))
	default:
		sendLine(w, http.StatusOK, "aggregatord is ready")
	}
}

// ParseExternalURL reads the URL by which others reach us.
func ParseExternalURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%q is not a URL by which others reach the daemon; write it as in http://metrics.example:9500", text)
	}
	for len(u.Path) > 0 && u.Path[len(u.Path)-1] == '/' {
		u.Path = u.Path[:len(u.Path)-1]
	}
	return u, nil
}
