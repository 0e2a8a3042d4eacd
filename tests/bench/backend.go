package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"

	metricspb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	tracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
)

// backendAddresses are the four listeners of the backend process.
type backendAddresses struct{ http, tcp, grpc, otlp string }

// runBackend is the application behind the proxies, and the collector of what
// they export: a process of its own, cheap enough not to be what is measured.
func runBackend(ctx context.Context, a backendAddresses) error {
	var listeners []net.Listener
	for _, address := range []string{a.http, a.tcp, a.grpc, a.otlp} {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", address)
		if err != nil {
			return fmt.Errorf("backend: listen on %s: %w", address, err)
		}
		listeners = append(listeners, l)
	}
	apps := grpc.NewServer(grpc.ForceServerCodec(rawCodec{}), grpc.UnknownServiceHandler(echoStream))
	sink := &collector{}
	collect := grpc.NewServer()
	tracepb.RegisterTraceServiceServer(collect, sink)
	metricspb.RegisterMetricsServiceServer(collect, metricsSink{})
	stop := context.AfterFunc(ctx, func() {
		for _, l := range listeners {
			l.Close()
		}
		apps.Stop()
		collect.Stop()
	})
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { acceptAll(listeners[0], serveHTTP) })
	wg.Go(func() { acceptAll(listeners[1], serveTCP) })
	wg.Go(func() { _ = apps.Serve(listeners[2]) })
	wg.Go(func() { _ = collect.Serve(listeners[3]) })
	wg.Wait()
	return nil
}

func acceptAll(l net.Listener, handle func(net.Conn)) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			go handle(c)
		}
	}
}

// answer is every HTTP answer: 1 KB of body.
var answer = []byte("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nServer: bench\r\nCache-Control: no-store\r\nContent-Length: 1024\r\n\r\n" +
	string(bytes.Repeat([]byte("0123456789abcdef"), 64)))

// serveHTTP answers each head that has no body.
func serveHTTP(c net.Conn) {
	defer c.Close()
	buf := make([]byte, 8<<10)
	n := 0
	for {
		m, err := c.Read(buf[n:])
		if err != nil {
			return
		}
		n += m
		for {
			end := bytes.Index(buf[:n], headEnd)
			if end < 0 {
				break
			}
			n = copy(buf, buf[end+len(headEnd):n])
			if _, err := c.Write(answer); err != nil {
				return
			}
		}
		if n == len(buf) {
			return
		}
	}
}

// The first byte of a TCP connection says what the backend does with the rest.
const (
	tcpEcho    = 'E'
	tcpDiscard = 'D' // until the end, then tell how much it was in decimal
)

func serveTCP(c net.Conn) {
	defer c.Close()
	var mode [1]byte
	if _, err := io.ReadFull(c, mode[:]); err != nil {
		return
	}
	buf := make([]byte, 4<<10)
	switch mode[0] {
	case tcpEcho:
		for {
			n, err := c.Read(buf)
			if n > 0 {
				if _, err := c.Write(buf[:n]); err != nil {
					return
				}
			}
			if err != nil {
				return
			}
		}
	case tcpDiscard:
		buf = make([]byte, 256<<10)
		var total int64
		for {
			n, err := c.Read(buf)
			total += int64(n)
			if err != nil {
				break
			}
		}
		fmt.Fprint(c, total)
	}
}

// echoStream answers every message of every method with itself.
func echoStream(_ any, s grpc.ServerStream) error {
	for {
		var m []byte
		if err := s.RecvMsg(&m); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := s.SendMsg(&m); err != nil {
			return err
		}
	}
}

// rawCodec passes messages as bytes, so that the benchmark's gRPC needs no
// messages of its own.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (rawCodec) Unmarshal(b []byte, v any) error {
	*v.(*[]byte) = bytes.Clone(b)
	return nil
}
func (rawCodec) Name() string { return "raw" }

// collector takes spans and forgets them.
type collector struct {
	tracepb.UnimplementedTraceServiceServer
	spans atomic.Int64
}

func (c *collector) Export(_ context.Context, r *tracepb.ExportTraceServiceRequest) (*tracepb.ExportTraceServiceResponse, error) {
	for _, rs := range r.GetResourceSpans() {
		for _, ss := range rs.GetScopeSpans() {
			c.spans.Add(int64(len(ss.GetSpans())))
		}
	}
	return &tracepb.ExportTraceServiceResponse{}, nil
}

type metricsSink struct {
	metricspb.UnimplementedMetricsServiceServer
}

func (metricsSink) Export(context.Context, *metricspb.ExportMetricsServiceRequest) (*metricspb.ExportMetricsServiceResponse, error) {
	return &metricspb.ExportMetricsServiceResponse{}, nil
}
