// Package receivertest is a receiver that others have written, to try outputs against: the
// handlers of Prometheus for remote write and for OTLP, which store in its own database. It is
// a module of its own, because what these need is larger than the daemon.
//
// The test of package output runs the tests here.
package receivertest

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math"
	"net/http"
	"sync"

	"github.com/prometheus/client_golang/exp/api/remote"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
	promremote "github.com/prometheus/prometheus/storage/remote"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"aggregatord/internal/metric"
	"aggregatord/internal/output/outputtest"
)

// The paths of a Receiver.
const (
	WritePath = "/api/v1/write"
	OTLPPath  = "/api/v1/otlp/v1/metrics"
)

// A Receiver is a database behind Prometheus' handlers.
type Receiver struct {
	http.Handler
	db *tsdb.DB

	// mu guards what follows.
	mu sync.Mutex
	// meta has type, help and unit by series.
	meta map[string]metadata.Metadata
	// versions counts requests of remote write by their Content-Type.
	versions map[string]int
}

// Open returns a Receiver that stores in a directory. It speaks the versions of remote write
// given, all if there are none. Start times become samples of 0.
func Open(dir string, versions ...remote.WriteMessageType) (*Receiver, error) {
	opts := tsdb.DefaultOptions()
	opts.EnableSTAsZeroSample = true
	db, err := tsdb.Open(dir, nil, nil, opts, nil)
	if err != nil {
		return nil, err
	}
	db.DisableCompactions()
	r := &Receiver{db: db, meta: map[string]metadata.Metadata{}, versions: map[string]int{}}
	if len(versions) == 0 {
		versions = remote.MessageTypes{remote.WriteV1MessageType, remote.WriteV2MessageType}
	}
	log := slog.New(slog.DiscardHandler)
	mux := http.NewServeMux()
	write := promremote.NewWriteHandler(log, nil, r, versions, true, false, true)
	mux.HandleFunc(WritePath, func(w http.ResponseWriter, req *http.Request) {
		r.count(req.Header.Get("Content-Type"))
		write.ServeHTTP(w, req)
	})
	config := promconfig.DefaultConfig
	mux.Handle(OTLPPath, promremote.NewOTLPWriteHandler(log, nil, r, func() promconfig.Config { return config }, promremote.OTLPOptions{}))
	r.Handler = mux
	return r, nil
}

// Close closes the database.
func (r *Receiver) Close() error { return r.db.Close() }

func (r *Receiver) count(version string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.versions[version]++
}

// Versions counts the requests of remote write by their Content-Type.
func (r *Receiver) Versions() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.versions)
}

// Meta returns what was said of a series.
func (r *Receiver) Meta(series string) metadata.Metadata {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.meta[series]
}

// Appender implements storage.Appendable.
func (r *Receiver) Appender(ctx context.Context) storage.Appender {
	return appender{r.db.Appender(ctx), r}
}

// AppenderV2 implements storage.AppendableV2.
func (r *Receiver) AppenderV2(ctx context.Context) storage.AppenderV2 {
	return appenderV2{r.db.AppenderV2(ctx), r}
}

func (r *Receiver) note(l labels.Labels, m metadata.Metadata) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.meta[spell(l)] = m
}

// appender notes metadata, which the database tells nobody.
type appender struct {
	storage.Appender
	r *Receiver
}

// UpdateMetadata implements storage.Appender.
func (a appender) UpdateMetadata(ref storage.SeriesRef, l labels.Labels, m metadata.Metadata) (storage.SeriesRef, error) {
	a.r.note(l, m)
	return a.Appender.UpdateMetadata(ref, l, m)
}

type appenderV2 struct {
	storage.AppenderV2
	r *Receiver
}

// Append implements storage.AppenderV2.
func (a appenderV2) Append(ref storage.SeriesRef, l labels.Labels, st, t int64, v float64, h *histogram.Histogram,
	fh *histogram.FloatHistogram, opts storage.AppendV2Options,
) (storage.SeriesRef, error) {
	a.r.note(l, opts.Metadata)
	return a.AppenderV2.Append(ref, l, st, t, v, h, fh, opts)
}

// spell writes labels as outputtest does.
func spell(l labels.Labels) string {
	var list []metric.Label
	l.Range(func(l labels.Label) {
		if l.Name != "__name__" {
			list = append(list, metric.Label{Name: l.Name, Value: l.Value})
		}
	})
	return outputtest.Series(l.Get("__name__"), list)
}

// A Sample of a series: Unix milliseconds and a value.
type Sample struct {
	T int64
	V float64
}

// Stale reports whether the sample marks the end of its series.
func (s Sample) Stale() bool { return value.IsStaleNaN(s.V) }

// All returns everything that was stored.
func (r *Receiver) All() (map[string][]Sample, error) {
	q, err := r.db.Querier(math.MinInt64, math.MaxInt64)
	if err != nil {
		return nil, err
	}
	out := map[string][]Sample{}
	set := q.Select(context.Background(), false, nil, labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+"))
	for set.Next() {
		s := set.At()
		it := s.Iterator(nil)
		for it.Next() == chunkenc.ValFloat {
			t, v := it.At()
			key := spell(s.Labels())
			out[key] = append(out[key], Sample{t, v})
		}
	}
	return out, errors.Join(set.Err(), q.Close())
}
