package output

import (
	"aggregatord/internal/telemetry"
)

// Metrics are the daemon's own metrics about outputs.
type Metrics struct {
	pushes      telemetry.CounterVec // output, type, result
	lastSuccess telemetry.GaugeVec   // output, type
	up          telemetry.GaugeVec   // output, type
	duration    telemetry.GaugeVec   // output, type
	seconds     telemetry.CounterVec // output, type
	bytes       telemetry.CounterVec // output, type
	samples     telemetry.GaugeVec   // output, type
	leftOut     telemetry.GaugeVec   // output, type
}

// NewMetrics makes them part of a set.
func NewMetrics(set *telemetry.Set) *Metrics {
	return &Metrics{
		pushes: set.CounterVec("aggregatord_output_pushes_total", "Pushes of an output, by how they ended.", "output", "type",
			"result"),
		lastSuccess: set.GaugeVec("aggregatord_output_last_success_timestamp_seconds",
			"When an output's receiver last took a push, in Unix seconds; 0: never.", "output", "type"),
		up: set.GaugeVec("aggregatord_output_up", "1 if the receiver took the last push of an output.", "output", "type"),
		duration: set.GaugeVec("aggregatord_output_last_duration_seconds", "How long the last push of an output took, whatever its end.",
			"output", "type"),
		seconds: set.CounterVec("aggregatord_output_push_seconds_total", "Time spent in pushes of an output.", "output", "type"),
		bytes: set.CounterVec("aggregatord_output_sent_bytes_total", "Bytes of bodies that an output sent, compressed.", "output",
			"type"),
		samples: set.GaugeVec("aggregatord_output_samples", "Samples that the receiver took with the last push of an output.", "output",
			"type"),
		leftOut: set.GaugeVec("aggregatord_output_samples_left_out",
			"Samples left out of the last push of an output: the protocol has no way to say them, others have the same name and labels, or the receiver refused them.", "output", "type"),
	}
}

// begin makes the metrics of an output, so that they are there before they count.
func (m *Metrics) begin(s *Spec) {
	name, kind := s.Name, s.Kind()
	m.pushes.With(name, kind, string(OK))
	m.lastSuccess.With(name, kind)
	m.up.With(name, kind)
	m.bytes.With(name, kind)
	m.seconds.With(name, kind)
}

// forget stops serving the gauges of an output that is gone.
func (m *Metrics) forget(name string) {
	for _, kind := range Kinds() {
		for _, v := range []telemetry.GaugeVec{m.lastSuccess, m.up, m.duration, m.samples, m.leftOut} {
			v.Remove(name, kind)
		}
	}
}
