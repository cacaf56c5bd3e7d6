package exposition

import (
	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// appendBound appends the value of le or quantile as the writers of the family spell it.
func appendBound(dst []byte, _ *view.Family, bound float64) []byte {
	return metric.AppendBound(dst, bound)
}
