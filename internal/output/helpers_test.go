package output

import (
	"aggregatord/internal/metric"
	"aggregatord/internal/output/outputtest"
	"aggregatord/internal/view"
)

// jobs is a view of a counter with a series for each pair of a name and a value.
func jobs(series ...any) *view.Snapshot {
	f := outputtest.Family{Name: "jobs", Help: "Jobs.", Type: metric.Counter, Sparse: true}
	for i := 0; i < len(series); i += 2 {
		v, ok := series[i+1].(float64)
		if !ok {
			v = float64(series[i+1].(int))
		}
		f.Metrics = append(f.Metrics, outputtest.Metric{Labels: []string{"q", series[i].(string)}, Values: []float64{v}})
	}
	if f.Metrics == nil {
		return outputtest.Snapshot()
	}
	return outputtest.Snapshot(f)
}
