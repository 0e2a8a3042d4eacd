package distribute

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/control/compile"
)

// DefaultPatience is how long a client may take to read or acknowledge a
// response before it is cut off.
const DefaultPatience = 30 * time.Second

// Options of a Server.
type Options struct {
	TrustDomain spiffeid.TrustDomain
	Log         *slog.Logger
	// Patience with slow clients; zero means DefaultPatience.
	Patience time.Duration
	// OnReport hears each report of a node agent with the node that its
	// certificate names. It must not block. Nil is allowed.
	OnReport func(node string, report *hauberkv1.NodeReport)
	// OnAck hears that acknowledgements may have changed. It must not block. Nil
	// is allowed.
	OnAck func()
	// Metrics, nil for none.
	Metrics *Metrics
}

// Server is the Discovery service.
type Server struct {
	hauberkv1.UnimplementedDiscoveryServer

	options  Options
	snapshot atomic.Pointer[snapshot]

	mu      sync.Mutex
	clients map[*client]struct{}
}

// NewServer checks the options.
func NewServer(o Options) (*Server, error) {
	switch {
	case o.TrustDomain.IsZero():
		return nil, errors.New("distribute: trust domain is empty")
	case o.Log == nil:
		return nil, errors.New("distribute: logger is missing")
	}
	if o.Patience <= 0 {
		o.Patience = DefaultPatience
	}
	if o.OnReport == nil {
		o.OnReport = func(string, *hauberkv1.NodeReport) {}
	}
	if o.OnAck == nil {
		o.OnAck = func() {}
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics()
	}
	return &Server{options: o, clients: make(map[*client]struct{})}, nil
}

// Publish makes resources what clients are told. One goroutine calls it; it
// does not wait for any client.
func (s *Server) Publish(compiled *compile.Resources) {
	s.snapshot.Store(newSnapshot(compiled, s.snapshot.Load()))
	s.options.Metrics.snapshots.Inc()
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.clients {
		c.poke()
	}
}

// Stream serves one client until it goes, or is too slow.
func (s *Server) Stream(stream hauberkv1.Discovery_StreamServer) error {
	ctx := stream.Context()
	snap := s.snapshot.Load()
	if snap == nil {
		return status.Error(codes.Unavailable, "the control plane is starting")
	}
	a, err := audienceOf(ctx, s.options.TrustDomain, snap)
	if err != nil {
		s.options.Metrics.refused.WithLabelValues(status.Code(err).String()).Inc()
		return err
	}
	c := newClient(a, time.Now())
	s.mu.Lock()
	s.clients[c] = struct{}{}
	s.mu.Unlock()
	gauge := s.options.Metrics.clients.WithLabelValues(a.kind())
	gauge.Inc()
	defer func() {
		s.mu.Lock()
		delete(s.clients, c)
		s.mu.Unlock()
		gauge.Dec()
		s.options.OnAck()
	}()

	// Both goroutines end when this function returns: gRPC then cancels the
	// stream, which ends their Recv and Send.
	ended := make(chan error, 2)
	go func() { ended <- s.receive(stream, c) }()
	go func() { ended <- s.send(ctx, stream, c) }()
	tick := time.NewTicker(s.options.Patience / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case err := <-ended:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case now := <-tick.C:
			if since := c.overdue(); !since.IsZero() && now.Sub(since) > s.options.Patience {
				s.options.Metrics.cutOff.Inc()
				s.options.Log.Warn("slow client is cut off; it resynchronises", "client", a.String(), "waited", now.Sub(since).String())
				return status.Errorf(codes.ResourceExhausted, "no acknowledgement in %s: connect again", s.options.Patience)
			}
		}
	}
}

func (s *Server) receive(stream hauberkv1.Discovery_StreamServer, c *client) error {
	for {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		report, err := c.receive(request)
		if err != nil {
			return err
		}
		if problem := request.GetError(); problem != "" {
			s.options.Metrics.nacks.WithLabelValues(request.GetType().String()).Inc()
			s.options.Log.Warn("client rejected an update", "client", c.audience.String(), "type", request.GetType().String(), "reason", clip(problem))
		}
		if report != nil {
			s.options.OnReport(c.audience.node, report)
		}
		if report != nil || request.GetResponseNonce() != "" {
			s.options.OnAck()
		}
		c.poke()
	}
}

// clip bounds a client's text for the log.
func clip(text string) string {
	const longest = 512
	if len(text) > longest {
		return text[:longest] + "…"
	}
	return text
}

func (s *Server) send(ctx context.Context, stream hauberkv1.Discovery_StreamServer, c *client) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.dirty:
		}
		for _, t := range sendOrder {
			c.mu.Lock()
			response := c.next(s.snapshot.Load(), t, time.Now())
			if response != nil {
				c.sending = time.Now()
			}
			c.mu.Unlock()
			if response == nil {
				continue
			}
			err := stream.Send(response)
			c.mu.Lock()
			c.sending = time.Time{}
			c.mu.Unlock()
			if err != nil {
				return err
			}
			s.options.Metrics.responses.WithLabelValues(t.String()).Inc()
		}
	}
}

// kind is the client's kind, for metrics.
func (a audience) kind() string {
	if a.node != "" {
		return "node"
	}
	return "sidecar"
}

// String names the client for logs.
func (a audience) String() string {
	if a.node != "" {
		return "node agent " + a.node
	}
	return "sidecar of pod " + a.podUID
}
