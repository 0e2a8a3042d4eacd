// Package probe answers the kubelet for the application: the injector points
// each probe of an application's container here and says what the original
// was, because the kubelet proves no identity and the application's port may
// demand one.
//
// It owns the three kinds of probe. It does not own the sidecar's own health.
package probe

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// Probe is one original probe; exactly one of its kinds is set.
type Probe struct {
	HTTP           *HTTP `json:"http,omitempty"`
	TCP            *TCP  `json:"tcp,omitempty"`
	GRPC           *GRPC `json:"grpc,omitempty"`
	TimeoutSeconds int   `json:"timeoutSeconds,omitempty"`
}

// HTTP is an httpGet probe.
type HTTP struct {
	Path    string   `json:"path"`
	Port    uint16   `json:"port"`
	Scheme  string   `json:"scheme,omitempty"`
	Headers []Header `json:"headers,omitempty"`
}

// Header is one field of an HTTP probe.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// TCP is a tcpSocket probe.
type TCP struct {
	Port uint16 `json:"port"`
}

// GRPC is a grpc probe.
type GRPC struct {
	Port    uint16 `json:"port"`
	Service string `json:"service,omitempty"`
}

// Probes are the original probes by "<container>/<kind>".
type Probes map[string]Probe

// Parse reads HAUBERK_PROBES; empty is none.
func Parse(s string) (Probes, error) {
	if s == "" {
		return nil, nil
	}
	d := json.NewDecoder(strings.NewReader(s))
	d.DisallowUnknownFields()
	var p Probes
	if err := d.Decode(&p); err != nil {
		return nil, fmt.Errorf("read probes: %w", err)
	}
	for name, probe := range p {
		kinds, port := 0, uint16(0)
		if probe.HTTP != nil {
			kinds, port = kinds+1, probe.HTTP.Port
		}
		if probe.TCP != nil {
			kinds, port = kinds+1, probe.TCP.Port
		}
		if probe.GRPC != nil {
			kinds, port = kinds+1, probe.GRPC.Port
		}
		if kinds != 1 || port == 0 {
			return nil, fmt.Errorf("probe %q: want one of http, tcp and grpc with a port", name)
		}
	}
	return p, nil
}

// Handler runs probes against the pod's own address. Whoever reaches the port can
// ask for them, so that a request chooses nothing but which of the declared
// probes is meant, and however many ask, each probe runs once at a time and at
// most once in freshFor: its outcome is shared.
type Handler struct {
	probes Probes
	runs   map[string]*runs
	fresh  time.Duration
	pod    netip.Addr
	dial   func(ctx context.Context, network, address string) (net.Conn, error)
	client *http.Client
}

// defaultTimeout is Kubernetes' default of timeoutSeconds.
const defaultTimeout = time.Second

// freshFor is how long an outcome stands: far less than a kubelet's least period
// of a second.
const freshFor = 100 * time.Millisecond

// runs is the present or last run of one probe.
type runs struct {
	mu   sync.Mutex
	last *run // guarded by mu
}

type run struct {
	done  chan struct{}
	err   error     // set before done is closed
	ended time.Time // likewise
}

// New makes a handler; dial must not be redirected.
func New(probes Probes, pod netip.Addr, dial func(ctx context.Context, network, address string) (net.Conn, error)) *Handler {
	each := make(map[string]*runs, len(probes))
	for name := range probes {
		each[name] = &runs{}
	}
	return &Handler{probes: probes, runs: each, fresh: freshFor, pod: pod, dial: dial, client: &http.Client{
		Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true, DisableCompression: true,
			// The kubelet does not verify either: a probe asks whether the
			// application answers, not who it is.
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
		// Any redirect is a success, as its status is below 400.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// ServeHTTP answers /probe/<container>/<kind>: 200, or 503 with the reason.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "use GET", http.StatusMethodNotAllowed)
		return
	}
	name := strings.TrimPrefix(r.URL.Path, "/probe/")
	p, ok := h.probes[name]
	if !ok {
		http.Error(w, fmt.Sprintf("no probe %q was injected", name), http.StatusNotFound)
		return
	}
	if err := h.share(r.Context(), h.runs[name], p); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	_, _ = io.WriteString(w, "ok\n")
}

// share returns the outcome of a run that is under way or fresh, else of a new
// one, which goes on for the others when its caller leaves.
func (h *Handler) share(ctx context.Context, r *runs, p Probe) error {
	r.mu.Lock()
	if last := r.last; last != nil {
		select {
		case <-last.done:
			if time.Since(last.ended) < h.fresh {
				r.mu.Unlock()
				return last.err
			}
		default:
			r.mu.Unlock()
			select {
			case <-last.done:
				return last.err
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	mine := &run{done: make(chan struct{})}
	r.last = mine
	r.mu.Unlock()
	timeout := defaultTimeout
	if p.TimeoutSeconds > 0 {
		timeout = time.Duration(p.TimeoutSeconds) * time.Second
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	mine.err = errors.New("the probe did not end") // what others hear if it panics
	defer func() { mine.ended = time.Now(); close(mine.done) }()
	mine.err = h.run(ctx, p)
	return mine.err
}

func (h *Handler) run(ctx context.Context, p Probe) error {
	switch {
	case p.HTTP != nil:
		return h.http(ctx, p.HTTP)
	case p.TCP != nil:
		c, err := h.dial(ctx, "tcp", h.address(p.TCP.Port))
		if err != nil {
			return err
		}
		return c.Close()
	case p.GRPC != nil:
		return h.grpc(ctx, p.GRPC)
	}
	return errors.New("probe is of no kind")
}

func (h *Handler) address(port uint16) string {
	return net.JoinHostPort(h.pod.String(), strconv.Itoa(int(port)))
}

func (h *Handler) http(ctx context.Context, p *HTTP) error {
	scheme := strings.ToLower(p.Scheme)
	if scheme == "" {
		scheme = "http"
	}
	path := p.Path
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+h.address(p.Port)+path, nil)
	if err != nil {
		return err
	}
	r.Header.Set("User-Agent", "kube-probe/hauberk")
	for _, f := range p.Headers {
		if strings.EqualFold(f.Name, "Host") {
			r.Host = f.Value
			continue
		}
		r.Header.Add(f.Name, f.Value)
	}
	resp, err := h.client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}

func (h *Handler) grpc(ctx context.Context, p *GRPC) error {
	conn, err := grpc.NewClient("passthrough:///"+h.address(p.Port), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return h.dial(ctx, "tcp", address) }))
	if err != nil {
		return err
	}
	defer conn.Close()
	r, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: p.Service})
	if err != nil {
		return err
	}
	if r.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		return fmt.Errorf("service %q is %s", p.Service, r.GetStatus())
	}
	return nil
}
