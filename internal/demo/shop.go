package demo

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"aggregatord/internal/metric"
)

// route is what the shop does for one method and path.
type route struct {
	method, path string
	weight       int           // how often it is asked for, relative to others
	latency      time.Duration // median
	size         float64       // median size of a response in bytes
	success      string        // status when all goes well
	failure      string        // status when it does not
	failures     float64       // share of requests that fail
}

var routes = []route{
	{"GET", "/", 30, 4 * time.Millisecond, 14e3, "200", "500", 0.001},
	{"GET", "/products", 30, 12 * time.Millisecond, 42e3, "200", "500", 0.002},
	{"GET", "/products/{id}", 25, 8 * time.Millisecond, 18e3, "200", "404", 0.04},
	{"GET", "/search", 10, 60 * time.Millisecond, 25e3, "200", "503", 0.02},
	{"POST", "/cart", 8, 15 * time.Millisecond, 400, "303", "409", 0.05},
	{"POST", checkoutPath, 4, 250 * time.Millisecond, 3e3, "201", "402", 0.08},
}

// checkoutPath is where a request that goes well is an order.
const checkoutPath = "/checkout"

// maxConnections is how many database connections a worker has; a request in progress
// takes one.
const maxConnections = 8

// leak is how much memory the application loses with each request: why workers are recycled.
const leak = 12 << 10

// request is one request in progress.
type request struct {
	route      *route
	status     string
	begun, end time.Duration // since the worker's start
	bytes      float64
}

// shop is the application: the requests in progress and what is told about them. It has
// counters with labels, histograms, a summary, and a gauge in each mode.
type shop struct {
	client  *client
	rng     *rand.Rand
	pending []request // by end

	requests  map[[3]string]value   // by method, path and status
	durations map[string]*histogram // by path
	sizes     summary
	orders    value

	memory, up                  value
	balance, inProgress         value
	queuePeak, slowest          value
	connectionsLow, connections value
	exchangeRate, products      value
}

// newShop declares the metrics. Those without labels appear in the files at once, those
// with labels when they are first used, as with the real client.
func newShop(c *client, rng *rand.Rand) *shop {
	s := &shop{
		client: c, rng: rng, requests: map[[3]string]value{}, durations: map[string]*histogram{},
		sizes:  c.summary("http_response_size_bytes", "Size of response bodies."),
		orders: c.counter("orders", "Orders placed."),

		memory:     c.gauge(metric.All, "worker_memory_bytes", "Memory of each worker, of the dead as they left it (mode all)."),
		up:         c.gauge(metric.LiveAll, "worker_up", "1 for each worker that is alive (mode liveall)."),
		balance:    c.gauge(metric.Sum, "till_balance_euros", "Orders less refunds, over living and dead workers (mode sum)."),
		inProgress: c.gauge(metric.LiveSum, "inprogress_requests", "Requests in progress, over living workers (mode livesum)."),
		queuePeak:  c.gauge(metric.Max, "queue_depth_peak", "Most requests that any worker, living or dead, had at once (mode max)."),
		slowest:    c.gauge(metric.LiveMax, "slowest_request_seconds", "Slowest request of any living worker (mode livemax)."),
		connectionsLow: c.gauge(metric.Min, "database_connections_free_low",
			"Fewest free connections that any worker, living or dead, was left with (mode min)."),
		connections: c.gauge(metric.LiveMin, "database_connections_free",
			"Free connections of the living worker that has fewest (mode livemin)."),
		exchangeRate: c.gauge(metric.MostRecent, "exchange_rate_dollars_per_euro",
			"Exchange rate as any worker, living or dead, last fetched it (mode mostrecent)."),
		products: c.gauge(metric.LiveMostRecent, "catalogue_products",
			"Products in the catalogue as a living worker last counted them (mode livemostrecent)."),
	}
	s.memory.set(float64(48<<20 + rng.IntN(16<<20)))
	s.up.set(1)
	s.connectionsLow.set(maxConnections)
	s.connections.set(maxConnections)
	s.fetchRate()
	s.loadCatalogue()
	return s
}

func (s *shop) fetchRate() {
	s.exchangeRate.setAt(math.Round((1.08+0.01*s.rng.NormFloat64())*1e4)/1e4, unixSeconds())
}

func (s *shop) loadCatalogue() {
	s.products.setAt(float64(1200+s.rng.IntN(50)), unixSeconds())
}

// nextEnd returns when the next of the requests in progress ends, if there are any.
func (s *shop) nextEnd() (time.Duration, bool) {
	if len(s.pending) == 0 {
		return 0, false
	}
	return s.pending[0].end, true
}

// begin takes a request that arrives now. All that is random about it is drawn here.
func (s *shop) begin(now time.Duration) {
	total := 0
	for i := range routes {
		total += routes[i].weight
	}
	pick := s.rng.IntN(total)
	i := 0
	for ; pick >= routes[i].weight; i++ {
		pick -= routes[i].weight
	}
	route := &routes[i]
	r := request{
		route: route, status: route.success, begun: now,
		end:   now + time.Duration(float64(route.latency)*math.Exp(0.7*s.rng.NormFloat64())),
		bytes: math.Round(route.size * math.Exp(0.3*s.rng.NormFloat64())),
	}
	if s.rng.Float64() < route.failures {
		r.status = route.failure
	}
	at, _ := slices.BinarySearchFunc(s.pending, r, func(a, b request) int { return cmp.Compare(a.end, b.end) })
	s.pending = slices.Insert(s.pending, at, r)
	if s.rng.IntN(50) == 0 {
		s.fetchRate()
	}
	if s.rng.IntN(200) == 0 {
		s.loadCatalogue()
	}
	s.memory.add(leak)
	s.told()
}

// end answers the request that ends next. Whoever kills the worker in the midst of it
// leaves the three records of a request different by at most this one.
func (s *shop) end() {
	r := s.pending[0]
	s.pending = slices.Delete(s.pending, 0, 1)
	seconds := (r.end - r.begun).Seconds()
	s.duration(r.route.path).observe(seconds)
	s.sizes.observe(r.bytes)
	s.request(r.route.method, r.route.path, r.status).add(1)
	if r.route.path == checkoutPath && r.status == r.route.success {
		s.orders.add(1)
		s.balance.add(math.Round(4000*math.Exp(0.6*s.rng.NormFloat64())) / 100)
		if s.rng.IntN(20) == 0 {
			s.balance.add(-25)
		}
	}
	s.slowest.set(max(s.slowest.get(), seconds))
	s.told()
}

// told brings the gauges up to date that follow from the requests in progress.
func (s *shop) told() {
	n := float64(len(s.pending))
	free := max(maxConnections-n, 0)
	s.inProgress.set(n)
	s.queuePeak.set(max(s.queuePeak.get(), n))
	s.connections.set(free)
	s.connectionsLow.set(min(s.connectionsLow.get(), free))
}

func (s *shop) request(method, path, status string) value {
	k := [3]string{method, path, status}
	v, ok := s.requests[k]
	if !ok {
		v = s.client.counter("http_requests", "Requests answered.",
			metric.Label{Name: "method", Value: method}, metric.Label{Name: "path", Value: path},
			metric.Label{Name: "status", Value: status})
		s.requests[k] = v
	}
	return v
}

func (s *shop) duration(path string) *histogram {
	h, ok := s.durations[path]
	if !ok {
		h = s.client.histogram("http_request_duration_seconds", "Time from a request to its response.",
			metric.Label{Name: "path", Value: path})
		s.durations[path] = h
	}
	return h
}

// unixSeconds is the time as clients write it.
func unixSeconds() float64 { return float64(time.Now().UnixNano()) / 1e9 }
