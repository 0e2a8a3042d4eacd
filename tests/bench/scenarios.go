package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// metrics are the numbers of one measurement, by the names of the columns.
type metrics map[string]float64

// Names of metrics. Times of latency are milliseconds.
const (
	mP50, mP90, mP99, mP999 = "p50_ms", "p90_ms", "p99_ms", "p999_ms"
	mRate                   = "per_second"
	mCPU                    = "cpu_us_per_request"
	mCores                  = "vcpu"
	mPSS                    = "pss_mb"
	mErrors                 = "errors"
	mCPUPerGB               = "cpu_s_per_gb"
	mGBps                   = "gb_per_second"
	mPerConn                = "kb_per_connection"
	mSustained              = "sustained_rps"
	mConns                  = "connections"
)

// scenario is one way to use a pair.
type scenario struct {
	name, title string
	quick       bool
	variant     variant
	latency     bool // p50… are worth subtracting the direct run's
	run         func(ctx context.Context, s *stack, d time.Duration) (metrics, error)
}

const defaultRules = 10

func allScenarios() []scenario {
	base := variant{rules: defaultRules}
	list := []scenario{
		{name: "http-16", title: "HTTP/1.1, 1 KB, 1000 requests/s, 16 connections", quick: true, latency: true, variant: base, run: httpRun(1000, 16)},
		{name: "http-64", title: "HTTP/1.1, 1 KB, 1000 requests/s, 64 connections", latency: true, variant: base, run: httpRun(1000, 64)},
		{name: "max-16", title: "HTTP/1.1, 1 KB, as fast as answers come, 16 connections", quick: true, variant: base, run: httpRun(0, 16)},
		{name: "max-64", title: "HTTP/1.1, 1 KB, as fast as answers come, 64 connections", variant: base, run: httpRun(0, 64)},
		{name: "sweep", title: "HTTP/1.1, 1 KB, 64 connections, rising rate", variant: base, run: sweep},
		{name: "grpc-unary", title: "gRPC unary, 1 KB, as fast as answers come, 16 calls at a time on 4 connections", variant: base, run: grpcUnary},
		{name: "grpc-stream", title: "gRPC bidirectional streams, 1 KB messages there and back, 16 streams on 4 connections", variant: base, run: grpcStream},
		{name: "bulk", title: "TCP bulk, one connection, client to server", quick: true, variant: base, run: bulk},
		{name: "churn-full", title: "TCP connections, one echo each, full handshakes, 8 at a time", variant: variant{rules: defaultRules, full: true}, run: churn},
		{name: "churn-resumed", title: "TCP connections, one echo each, resumed handshakes, 8 at a time", variant: base, run: churn},
		{name: "idle", title: "memory without connections", quick: true, variant: base, run: idle},
	}
	for _, n := range []int{1000, 10000} {
		list = append(list,
			scenario{name: fmt.Sprintf("idle-http-%d", n), title: fmt.Sprintf("memory with %d idle HTTP/1.1 connections, one request each before", n),
				quick: n == 1000, variant: base, run: idleConnections(n, false)},
			scenario{name: fmt.Sprintf("idle-tcp-%d", n), title: fmt.Sprintf("memory with %d idle TCP connections (as many TLS sessions between the proxies)", n),
				variant: base, run: idleConnections(n, true)})
	}
	return append(list, scenario{name: "policy", title: "Hauberk: cost of rules, as fast as answers come, 16 connections", quick: true, run: httpRun(0, 16)})
}

// policyRules are the variants of the scenario policy.
var policyRules = []int{0, 10, 100, 1000}

var errNotCarried = errors.New("the pair does not carry this protocol")

// meter takes CPU time between two moments.
type meter struct {
	procs  []*process
	before []time.Duration
	used   time.Duration
	start  time.Time
	took   time.Duration
	err    error
}

func (m *meter) begin() {
	m.before = m.before[:0]
	for _, p := range m.procs {
		t, err := p.cpu()
		m.err = errors.Join(m.err, err)
		m.before = append(m.before, t)
	}
	m.start = time.Now()
}

func (m *meter) end() {
	m.took = time.Since(m.start)
	for i, p := range m.procs {
		t, err := p.cpu()
		m.err = errors.Join(m.err, err)
		m.used += t - m.before[i]
	}
}

// put adds CPU per operation and memory.
func (m *meter) put(out metrics, n int) error {
	if m.err != nil {
		return m.err
	}
	if len(m.procs) == 0 {
		return nil
	}
	if n > 0 {
		out[mCPU] = float64(m.used.Nanoseconds()) / 1000 / float64(n)
	}
	out[mCores] = m.used.Seconds() / m.took.Seconds()
	return putPSS(m.procs, out)
}

func putPSS(procs []*process, out metrics) error {
	var total int64
	for _, p := range procs {
		n, err := p.pss()
		if err != nil {
			return err
		}
		total += n
	}
	if total > 0 {
		out[mPSS] = float64(total) / (1 << 20)
	}
	return nil
}

func millis(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

func putLatency(out metrics, h *histogram) {
	out[mP50], out[mP90] = millis(h.quantile(0.5)), millis(h.quantile(0.9))
	out[mP99], out[mP999] = millis(h.quantile(0.99)), millis(h.quantile(0.999))
}

// warm is how long before measuring a pair is used.
const warm = 500 * time.Millisecond

func httpRun(rate float64, conns int) func(context.Context, *stack, time.Duration) (metrics, error) {
	return func(_ context.Context, s *stack, d time.Duration) (metrics, error) {
		m := &meter{procs: s.procs}
		o, err := load{target: s.http, netns: s.netns, conns: conns, rate: rate, warmup: warm, duration: d, begin: m.begin, end: m.end}.run()
		if err != nil {
			return nil, err
		}
		out := metrics{mRate: float64(o.completed) / o.elapsed.Seconds(), mErrors: float64(o.errors)}
		putLatency(out, &o.latency)
		return out, m.put(out, o.completed)
	}
}

// sweepRates are tried one after the other while the pair keeps up.
var sweepRates = []float64{2000, 4000, 6000, 8000, 10000, 12000, 14000, 16000, 20000, 24000, 28000, 32000}

func sweep(_ context.Context, s *stack, d time.Duration) (metrics, error) {
	out := metrics{mSustained: 0}
	for _, rate := range sweepRates {
		// Twice, since other work on the machine may spoil one.
		sustained := false
		for range 2 {
			o, err := load{target: s.http, netns: s.netns, conns: 64, rate: rate, warmup: warm / 2, duration: d / 4, begin: func() {}, end: func() {}}.run()
			if err != nil {
				return nil, err
			}
			p99 := millis(o.latency.quantile(0.99))
			name50, name99 := fmt.Sprintf("p50_ms@%.0f", rate), fmt.Sprintf("p99_ms@%.0f", rate)
			if before, seen := out[name99]; !seen || p99 < before {
				out[name50], out[name99] = millis(o.latency.quantile(0.5)), p99
			}
			if sustained = float64(o.completed)/o.elapsed.Seconds() >= 0.95*rate && p99 <= 100; sustained {
				break
			}
		}
		if !sustained {
			break
		}
		out[mSustained] = rate
	}
	return out, nil
}

func bulk(ctx context.Context, s *stack, d time.Duration) (metrics, error) {
	if !s.tcp.IsValid() {
		return nil, errNotCarried
	}
	c, err := dial(ctx, s.netns, s.tcp.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	buf := make([]byte, 128<<10)
	buf[0] = tcpDiscard
	m := &meter{procs: s.procs}
	var sent, before int64
	start := time.Now()
	measuring := false
	for {
		_ = c.SetWriteDeadline(time.Now().Add(5 * time.Second))
		n, err := c.Write(buf)
		sent += int64(n)
		if err != nil {
			return nil, fmt.Errorf("bulk: after %d bytes: %w", sent, err)
		}
		if at := time.Since(start); !measuring && at > warm {
			measuring, before = true, sent
			m.begin()
		} else if at > warm+d {
			break
		}
	}
	m.end()
	moved := float64(sent-before) / 1e9
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return nil, err
	}
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	told, err := io.ReadAll(c)
	if err != nil {
		return nil, fmt.Errorf("bulk: %w", err)
	}
	if got, _ := strconv.ParseInt(string(told), 10, 64); got != sent-1 {
		return nil, fmt.Errorf("bulk: sent %d bytes, the backend got %q", sent-1, told)
	}
	out := metrics{mGBps: moved / m.took.Seconds()}
	if err := m.put(out, 0); err != nil {
		return nil, err
	}
	if len(s.procs) > 0 {
		out[mCPUPerGB] = m.used.Seconds() / moved
	}
	return out, nil
}

// echoOnce opens a connection, sends a byte and waits for it.
func echoOnce(ctx context.Context, s *stack) (net.Conn, error) {
	c, err := dial(ctx, s.netns, s.tcp.String())
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	b := []byte{tcpEcho, 'x'}
	if _, err = c.Write(b); err == nil {
		_, err = io.ReadFull(c, b[:1])
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func churn(ctx context.Context, s *stack, d time.Duration) (metrics, error) {
	if !s.tcp.IsValid() {
		return nil, errNotCarried
	}
	m := &meter{procs: s.procs}
	var wg sync.WaitGroup
	var measuring, stopped atomic.Bool
	var mu sync.Mutex
	var all histogram
	var failures int
	for range 8 {
		wg.Go(func() {
			for !stopped.Load() {
				start := time.Now()
				c, err := echoOnce(ctx, s)
				if err == nil {
					c.Close()
				}
				if !measuring.Load() {
					continue
				}
				mu.Lock()
				if err != nil {
					failures++
				} else {
					all.record(time.Since(start))
				}
				mu.Unlock()
			}
		})
	}
	time.Sleep(warm)
	measuring.Store(true)
	m.begin()
	time.Sleep(d)
	measuring.Store(false)
	m.end()
	stopped.Store(true)
	wg.Wait()
	out := metrics{mRate: float64(all.n) / m.took.Seconds(), mErrors: float64(failures)}
	putLatency(out, &all)
	return out, m.put(out, int(all.n))
}

// settle is how long memory is left alone before it is read.
const settle = time.Second

func idle(_ context.Context, s *stack, _ time.Duration) (metrics, error) {
	time.Sleep(settle)
	out := metrics{}
	return out, putPSS(s.procs, out)
}

func idleConnections(n int, bytes bool) func(context.Context, *stack, time.Duration) (metrics, error) {
	return func(ctx context.Context, s *stack, _ time.Duration) (metrics, error) {
		if bytes && !s.tcp.IsValid() {
			return nil, errNotCarried
		}
		// A proxy has two descriptors for each connection.
		n := min(n, int(raiseLimits()/2)-500)
		time.Sleep(settle)
		before := metrics{}
		if err := putPSS(s.procs, before); err != nil {
			return nil, err
		}
		open := func() (net.Conn, error) {
			if bytes {
				return echoOnce(ctx, s)
			}
			return requestOnce(ctx, s.netns, s.http)
		}
		conns, err := openMany(n, open)
		defer func() {
			for _, c := range conns {
				c.Close()
			}
		}()
		if err != nil {
			return nil, err
		}
		time.Sleep(settle)
		out := metrics{mConns: float64(n)}
		if err := putPSS(s.procs, out); err != nil {
			return nil, err
		}
		if len(s.procs) > 0 {
			out[mPerConn] = (out[mPSS] - before[mPSS]) * 1024 / float64(n)
		}
		return out, nil
	}
}

func requestOnce(ctx context.Context, ns string, to netip.AddrPort) (net.Conn, error) {
	c, err := dial(ctx, ns, to.String())
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if err := exchangeOne(c); err != nil {
		c.Close()
		return nil, err
	}
	_ = c.SetDeadline(time.Time{})
	return c, nil
}

// openMany opens n connections, 16 at a time.
func openMany(n int, open func() (net.Conn, error)) ([]net.Conn, error) {
	var mu sync.Mutex
	var conns []net.Conn
	var failed error
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for next.Add(1) <= int64(n) {
				c, err := open()
				mu.Lock()
				if err != nil {
					failed = err
				} else {
					conns = append(conns, c)
				}
				stop := failed != nil
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	wg.Wait()
	if failed != nil {
		return conns, fmt.Errorf("after %d connections: %w", len(conns), failed)
	}
	return conns, nil
}
