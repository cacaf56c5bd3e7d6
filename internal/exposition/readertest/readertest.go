// Package readertest reads expositions as those do who scrape: with the parsers of Prometheus,
// VictoriaMetrics, client_golang and the Python client, and with promtool. It is a module of its
// own, because Prometheus and VictoriaMetrics are larger than the daemon.
package readertest

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"

	vm "github.com/VictoriaMetrics/VictoriaMetrics/lib/protoparser/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"

	"aggregatord/internal/exposition/expositiontest"
	"aggregatord/internal/metric"
)

// A Sample is what a reader found.
type Sample = expositiontest.Sample

// A Reader reads an exposition of the content type, and refuses what its program would refuse.
type Reader func(body []byte, contentType string) ([]Sample, error)

// Prometheus returns its parser, as its scraper uses it: with the validation of names that it is
// configured with.
func Prometheus(names model.ValidationScheme) Reader {
	return func(body []byte, contentType string) (samples []Sample, err error) {
		p, err := textparse.New(body, contentType, labels.NewSymbolTable(), textparse.ParserOptions{})
		if err != nil {
			return nil, err
		}
		for {
			entry, err := p.Next()
			switch {
			case errors.Is(err, io.EOF):
				return samples, nil
			case err != nil:
				return nil, err
			case entry == textparse.EntryHistogram:
				return nil, errors.New("a native histogram")
			case entry != textparse.EntrySeries:
				continue
			}
			series, stamp, value := p.Series()
			if stamp != nil {
				return nil, fmt.Errorf("%s has a timestamp", series)
			}
			var all labels.Labels
			p.Labels(&all)
			all = labels.NewBuilder(all).Labels() // without those that are empty
			if !all.IsValid(names) {
				return nil, fmt.Errorf("%v is not valid in scheme %v", all, names)
			}
			if name, twice := all.HasDuplicateLabelNames(); twice {
				return nil, fmt.Errorf("%v has %s twice", all, name)
			}
			s := Sample{Value: value}
			all.Range(func(l labels.Label) {
				if l.Name == labels.MetricName {
					s.Name = l.Value
				} else {
					s.Labels = append(s.Labels, metric.Label{Name: l.Name, Value: l.Value})
				}
			})
			samples = append(samples, s)
		}
	}
}

// VictoriaMetrics is its parser of what it scrapes, which skips lines that it cannot read.
func VictoriaMetrics(body []byte, _ string) (samples []Sample, err error) {
	rows, _ := vm.UnmarshalWithMetadata(vm.Rows{}, vm.MetadataRows{}, string(body), func(s string) {
		err = errors.Join(err, errors.New(s))
	})
	for _, row := range rows.Rows {
		s := Sample{Name: strings.Clone(row.Metric), Value: row.Value}
		for _, tag := range row.Tags {
			s.Labels = append(s.Labels, metric.Label{Name: strings.Clone(tag.Key), Value: strings.Clone(tag.Value)})
		}
		metric.SortLabels(s.Labels)
		samples = append(samples, s)
	}
	return samples, err
}

// Expfmt returns the parser that client_golang, node_exporter and Pushgateway read text and
// protobuf with.
func Expfmt(names model.ValidationScheme) Reader {
	return func(body []byte, contentType string) (samples []Sample, err error) {
		var families []*dto.MetricFamily
		if strings.HasPrefix(contentType, expfmt.ProtoType) {
			decoder := expfmt.NewDecoder(strings.NewReader(string(body)), expfmt.Format(contentType))
			for {
				family := new(dto.MetricFamily)
				if err := decoder.Decode(family); errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					return nil, err
				}
				families = append(families, family)
			}
		} else {
			parser := expfmt.NewTextParser(names)
			byName, err := parser.TextToMetricFamilies(strings.NewReader(string(body)))
			if err != nil {
				return nil, err
			}
			families = slices.Collect(maps.Values(byName))
		}
		for _, family := range families {
			samples = appendFamily(samples, family)
		}
		return samples, nil
	}
}

// appendFamily appends the samples that a family stands for. A histogram whose +Inf bucket is
// not written has one all the same.
func appendFamily(samples []Sample, family *dto.MetricFamily) []Sample {
	for _, m := range family.Metric {
		add := func(suffix string, value float64, bound ...string) {
			s := Sample{Name: family.GetName() + suffix, Value: value}
			for _, l := range m.Label {
				s.Labels = append(s.Labels, metric.Label{Name: l.GetName(), Value: l.GetValue()})
			}
			if len(bound) > 0 {
				s.Labels = append(s.Labels, metric.Label{Name: bound[0], Value: bound[1]})
			}
			metric.SortLabels(s.Labels)
			samples = append(samples, s)
		}
		spell := func(bound float64) string { return string(metric.AppendBound(nil, bound)) }
		switch family.GetType() {
		case dto.MetricType_COUNTER:
			add("", m.GetCounter().GetValue())
		case dto.MetricType_GAUGE:
			add("", m.GetGauge().GetValue())
		case dto.MetricType_UNTYPED:
			add("", m.GetUntyped().GetValue())
		case dto.MetricType_SUMMARY:
			for _, q := range m.GetSummary().GetQuantile() {
				add("", q.GetValue(), "quantile", spell(q.GetQuantile()))
			}
			add("_sum", m.GetSummary().GetSampleSum())
			add("_count", float64(m.GetSummary().GetSampleCount()))
		case dto.MetricType_HISTOGRAM:
			h := m.GetHistogram()
			inf := false
			for _, b := range h.GetBucket() {
				add("_bucket", float64(b.GetCumulativeCount()), "le", spell(b.GetUpperBound()))
				inf = inf || math.IsInf(b.GetUpperBound(), 1)
			}
			if !inf {
				add("_bucket", float64(h.GetSampleCount()), "le", "+Inf")
			}
			add("_sum", h.GetSampleSum())
			add("_count", float64(h.GetSampleCount()))
		}
	}
	return samples
}
