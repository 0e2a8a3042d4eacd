package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// row is one measurement.
type row struct {
	Scenario string  `json:"scenario"`
	Pair     string  `json:"pair"`
	Round    int     `json:"round"`
	Metrics  metrics `json:"metrics,omitempty"`
	Error    string  `json:"error,omitempty"`
	Load     float64 `json:"load"` // of the machine, when it began
}

// entrant is a pair with its variant, as a scenario sees it.
type entrant struct {
	pair
	label   string
	variant variant
}

// measure runs everything and reports it.
func measure(ctx context.Context, o *options) error {
	scenarios, pairs, err := o.chosen()
	if err != nil {
		return err
	}
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	defer b.close()
	if o.profile != "" {
		return b.profile(ctx, o)
	}
	r := newResults(b, o)
	var present []pair
	for _, p := range pairs {
		if p.absent != nil {
			if why := p.absent(b); why != "" {
				if p.name != "hauberk-before" {
					r.Absent[p.name] = why
				}
				fmt.Fprintf(os.Stderr, "%s does not take part: %s\n", p.name, why)
				continue
			}
		}
		present = append(present, p)
	}
	for env, why := range notDriven {
		if os.Getenv(env) != "" {
			r.Absent[env] = why
			fmt.Fprintln(os.Stderr, why)
		}
	}
	defer func() {
		if err := r.save(o.out); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
	}()
	// Rounds are the outer loop: what changes on the machine over time meets all.
	for round := range o.rounds {
		for i := range scenarios {
			s := &scenarios[i]
			entrants := entrantsOf(s, present)
			rand.Shuffle(len(entrants), func(i, j int) { entrants[i], entrants[j] = entrants[j], entrants[i] })
			for _, e := range entrants {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				one := row{Scenario: s.name, Pair: e.label, Round: round, Load: loadAverage()}
				one.Metrics, err = b.one(ctx, s, &e, o.duration)
				if ctx.Err() != nil {
					return ctx.Err() // what was cut short is no result
				}
				if err != nil {
					one.Error = err.Error()
				}
				r.Rows = append(r.Rows, one)
				fmt.Fprintf(os.Stderr, "round %d of %d  %-16s %-16s %s\n", round+1, o.rounds, s.name, e.label, brief(&one))
			}
		}
	}
	r.Ended = time.Now().UTC()
	return publish(r, o)
}

func entrantsOf(s *scenario, pairs []pair) []entrant {
	var list []entrant
	for _, p := range pairs {
		if s.name == "policy" {
			if p.name == "hauberk" {
				for _, n := range policyRules {
					list = append(list, entrant{p, fmt.Sprintf("%d rules", n), variant{rules: n}})
				}
			}
			continue
		}
		if p.cannot == nil || p.cannot(s.name) == "" {
			list = append(list, entrant{p, p.name, s.variant})
		}
	}
	return list
}

func (b *bench) one(ctx context.Context, s *scenario, e *entrant, d time.Duration) (metrics, error) {
	st, err := e.start(ctx, b, e.variant)
	if err != nil {
		return nil, err
	}
	defer st.stop()
	if err := st.ready(ctx); err != nil {
		return nil, err
	}
	m, err := s.run(ctx, st, d)
	for _, p := range st.procs {
		if dead := p.alive(); dead != nil {
			return nil, dead
		}
	}
	return m, err
}

// newBench prepares certificates, namespaces and the backends.
func newBench(ctx context.Context, o *options) (_ *bench, err error) {
	b := &bench{limit: raiseLimits(), envoy: os.Getenv("ENVOY"), before: o.before, starter: &starter{acct: findAccounting()}}
	if b.self, err = os.Executable(); err != nil {
		return nil, err
	}
	if b.hauberk, err = filepath.Abs(o.proxy); err != nil {
		return nil, err
	}
	if _, err := os.Stat(b.hauberk); err != nil {
		return nil, fmt.Errorf("the sidecar's binary: %w (make build makes it)", err)
	}
	if b.dir, err = os.MkdirTemp("", "hauberk-bench-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	// The captured sidecar is another user.
	if err := os.Chmod(b.dir, 0o755); err != nil { //nolint:gosec // see above
		return nil, err
	}
	if err := makePKI(b.dir); err != nil {
		return nil, err
	}
	p, err := ports(4)
	if err != nil {
		return nil, err
	}
	b.backend = backendAt{p[0], p[1], p[2], p[3]}
	if err := b.startBackend(ctx, "", &b.backend); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 || findBinary("iptables") == "" || findBinary("setpriv") == "" {
		return b, nil
	}
	if b.pods, err = makePods(); err != nil {
		return nil, err
	}
	in := netip.MustParseAddr(serverIP)
	b.inPod = backendAt{netip.AddrPortFrom(in, 8080), netip.AddrPortFrom(in, 9090), netip.AddrPortFrom(in, 9091), netip.AddrPortFrom(in, 4317)}
	return b, b.startBackend(ctx, b.pods.server, &b.inPod)
}

func (b *bench) startBackend(ctx context.Context, ns string, at *backendAt) error {
	args := []string{b.self, "backend", "-listen", join(at.HTTP, at.TCP, at.GRPC, at.OTLP)}
	name := ""
	if ns != "" {
		args = append([]string{"ip", "netns", "exec", ns}, args...)
		name = b.pods.client
	}
	p, err := b.starter.start(ctx, "backend", args...)
	if err != nil {
		return err
	}
	b.backends = append(b.backends, p)
	return (&stack{http: at.HTTP, netns: name, procs: []*process{p}}).ready(ctx)
}

func (b *bench) close() {
	for _, p := range b.backends {
		p.stop()
	}
	if b.pods != nil {
		b.pods.remove()
	}
	_ = os.RemoveAll(b.dir)
}

// profile loads the plain pair as fast as it goes and writes CPU profiles of
// both sides, and what they allocated.
func (b *bench) profile(ctx context.Context, o *options) error {
	if err := os.MkdirAll(o.profile, 0o755); err != nil {
		return err
	}
	st, err := startHauberk(ctx, b, variant{rules: defaultRules})
	if err != nil {
		return err
	}
	defer st.stop()
	if err := st.ready(ctx); err != nil {
		return err
	}
	seconds := max(int(o.duration.Seconds()), 1)
	type result struct {
		m   metrics
		err error
	}
	done := make(chan result, 1)
	go func() {
		m, err := httpRun(0, 16)(ctx, st, o.duration+2*time.Second)
		done <- result{m, err}
	}()
	time.Sleep(warm)
	fetched := make(chan error, len(st.admin))
	for i, at := range st.admin {
		side := []string{"client", "server"}[i]
		go func() {
			fetched <- fetch(ctx, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", at, seconds), filepath.Join(o.profile, side+".cpu.pprof"))
		}()
	}
	for range st.admin {
		if err := <-fetched; err != nil {
			return err
		}
	}
	r := <-done
	if r.err != nil {
		return r.err
	}
	for i, at := range st.admin {
		side := []string{"client", "server"}[i]
		if err := fetch(ctx, fmt.Sprintf("http://%s/debug/pprof/allocs", at), filepath.Join(o.profile, side+".allocs.pprof")); err != nil {
			return err
		}
	}
	fmt.Printf("%.0f requests/s, %.1f us CPU per request of both sidecars while profiled\n", r.m[mRate], r.m[mCPU])
	return nil
}

func fetch(ctx context.Context, url, file string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.Copy(out, resp.Body); err != nil {
		return err
	}
	return out.Close()
}
