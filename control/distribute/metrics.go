package distribute

import "github.com/prometheus/client_golang/prometheus"

// Metrics of the config stream.
type Metrics struct {
	clients   *prometheus.GaugeVec
	responses *prometheus.CounterVec
	nacks     *prometheus.CounterVec
	refused   *prometheus.CounterVec
	snapshots prometheus.Counter
	cutOff    prometheus.Counter
}

// NewMetrics makes the metrics; they count whether registered or not.
func NewMetrics() *Metrics {
	return &Metrics{
		clients: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "hauberk_discovery_clients", Help: "Connected clients of the config stream, by kind."}, []string{"kind"}),
		responses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hauberk_discovery_responses_total", Help: "Responses sent, by resource type."}, []string{"type"}),
		nacks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hauberk_discovery_rejected_total", Help: "Responses that clients rejected, by resource type."}, []string{"type"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hauberk_discovery_refused_total", Help: "Streams refused for the caller's identity, by gRPC code."}, []string{"code"}),
		snapshots: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "hauberk_discovery_snapshots_total", Help: "Snapshots published to clients."}),
		cutOff: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "hauberk_discovery_cut_off_total", Help: "Clients that were cut off for being slow."}),
	}
}

// Register adds the metrics to a registry.
func (m *Metrics) Register(r prometheus.Registerer) error {
	for _, c := range []prometheus.Collector{m.clients, m.responses, m.nacks, m.refused, m.snapshots, m.cutOff} {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}
