package exposition

import (
	"fmt"
	"testing"

	"aggregatord/internal/view"
)

// BenchmarkJudge is what looking at the values costs a scrape; compare with BenchmarkAppend.
func BenchmarkJudge(b *testing.B) {
	for _, f := range []Format{{}, {Kind: OpenMetrics100}, {Kind: Protobuf}} {
		b.Run(fmt.Sprintf("format=%v/series=20000", f), func(b *testing.B) {
			snaps := []*view.Snapshot{wide(20000)}
			p := newPlan(f, snaps)
			for b.Loop() {
				p.judge(snaps)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(snaps[0].Layout.Points), "ns/sample")
		})
	}
}
