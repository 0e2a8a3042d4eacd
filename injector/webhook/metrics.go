package webhook

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Results of a review.
const (
	resultInjected = "injected"
	resultSkipped  = "skipped"
	resultRefused  = "refused"
	resultError    = "error"
)

// Metrics of the webhook.
type Metrics struct {
	reviews  *prometheus.CounterVec
	duration prometheus.Histogram
}

// NewMetrics makes the metrics and registers them:
// hauberk_injector_reviews_total{result="injected|skipped|refused|error"} and
// hauberk_injector_review_duration_seconds.
func NewMetrics(registry prometheus.Registerer) *Metrics {
	m := &Metrics{
		reviews: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hauberk_injector_reviews_total", Help: "Admission reviews answered, by result.",
		}, []string{"result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "hauberk_injector_review_duration_seconds", Help: "Time from a review's arrival to its answer.",
			Buckets: []float64{.0005, .001, .005, .01, .05, .1, .5, 1, 5},
		}),
	}
	for _, r := range []string{resultInjected, resultSkipped, resultRefused, resultError} {
		m.reviews.WithLabelValues(r) // a series that is there from the start can be alerted on
	}
	registry.MustRegister(m.reviews, m.duration)
	return m
}

func (m *Metrics) observe(result string, d time.Duration) {
	m.reviews.WithLabelValues(result).Inc()
	m.duration.Observe(d.Seconds())
}
