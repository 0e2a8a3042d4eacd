package proxy

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/hauberk-mesh/hauberk/cli/mesh"
	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// connection is one of the sidecar's page /connections.
type connection struct {
	Direction string    `json:"direction"`
	Peer      string    `json:"peer"`
	Target    string    `json:"target"`
	Protocol  string    `json:"protocol,omitempty"`
	Since     time.Time `json:"since"`
}

// pool is one of the sidecar's page /pools.
type pool struct {
	Address       string
	PodUID        string
	SPIFFEID      string
	Live, Idle    int64
	LatencyMicros int64
	Failures      int64
	AsideUntil    time.Time
}

// sample is one line of /metrics.
type sample struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
}

func printStats(ctx context.Context, c *run.Clients, env *run.Env, ref string) error {
	p, err := mesh.FindSidecar(ctx, c, ref, env.CurrentNamespace())
	if err != nil {
		return err
	}
	connections, pools := []connection{}, []pool{}
	if err := c.PodJSON(ctx, p.Namespace, p.Name, names.PortAdmin, "/connections", &connections); err != nil {
		return err
	}
	if err := c.PodJSON(ctx, p.Namespace, p.Name, names.PortAdmin, "/pools", &pools); err != nil {
		return err
	}
	text, err := c.PodDo(ctx, http.MethodGet, p.Namespace, p.Name, names.PortMetrics, "/metrics", nil)
	if err != nil {
		return err
	}
	samples := counters(text)
	if done, err := env.Structured(map[string]any{"apiVersion": run.OutputVersion, "kind": "ProxyStats", "pod": p.Namespace + "/" + p.Name,
		"connections": connections, "pools": pools, "metrics": samples}); done {
		return err
	}
	now := env.Time()
	fmt.Fprintf(env.Out, "%s\n", env.Paint(env.Out, run.Bold, fmt.Sprintf("connections (%d)", len(connections))))
	var table [][]string
	for _, l := range connections {
		protocol := l.Protocol
		if protocol == "" {
			protocol = "-"
		}
		table = append(table, []string{"  " + l.Direction, l.Peer, l.Target, protocol, run.Duration(now.Sub(l.Since))})
	}
	if len(table) > 0 {
		if err := env.Table([]string{"  DIRECTION", "PEER", "TARGET", "PROTOCOL", "AGE"}, table); err != nil {
			return err
		}
	}
	fmt.Fprintf(env.Out, "\n%s\n", env.Paint(env.Out, run.Bold, fmt.Sprintf("upstream endpoints (%d)", len(pools))))
	table = nil
	for _, s := range pools {
		identity, aside := s.SPIFFEID, "-"
		if identity == "" {
			identity = "(plain)"
		}
		if s.AsideUntil.After(now) {
			aside = "for " + run.Duration(s.AsideUntil.Sub(now))
		}
		table = append(table, []string{"  " + s.Address, identity, strconv.FormatInt(s.Live, 10), strconv.FormatInt(s.Idle, 10),
			(time.Duration(s.LatencyMicros) * time.Microsecond).String(), strconv.FormatInt(s.Failures, 10), aside})
	}
	if len(table) > 0 {
		if err := env.Table([]string{"  ADDRESS", "IDENTITY", "LIVE", "IDLE", "LATENCY", "FAILURES", "ASIDE"}, table); err != nil {
			return err
		}
	}
	fmt.Fprintf(env.Out, "\n%s\n", env.Paint(env.Out, run.Bold, "counters that are not zero"))
	for _, s := range samples {
		fmt.Fprintf(env.Out, "  %s %s\n", s.Name, strconv.FormatFloat(s.Value, 'f', -1, 64))
	}
	return nil
}

// counters are the mesh's own samples of a metrics page (Prometheus text
// format) that are not zero, histograms by their sums and counts.
func counters(text []byte) []sample {
	samples := []sample{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		// A label's value may hold spaces; what follows the last one is the value:
		// our pages have no timestamps.
		space := strings.LastIndexByte(line, ' ')
		if space < 0 || !strings.HasPrefix(line, "hauberk_") {
			continue
		}
		name := line[:space]
		value, err := strconv.ParseFloat(line[space+1:], 64)
		metric, _, _ := strings.Cut(name, "{")
		if err != nil || value == 0 || strings.HasSuffix(metric, "_bucket") {
			continue
		}
		samples = append(samples, sample{name, value})
	}
	return samples
}
