package discovery

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
)

// All is the name that subscribes to whatever the client is entitled to.
const All = "*"

// Timing of the connection. A peer that is gone without a word is found after
// KeepaliveTime+KeepaliveTimeout; the server's enforcement policy must allow
// pings every KeepaliveTime.
const (
	KeepaliveTime    = 10 * time.Second // the shortest that gRPC allows
	KeepaliveTimeout = 9 * time.Second

	connectTimeout = 10 * time.Second
	sendTimeout    = 20 * time.Second
	stableAfter    = 10 * time.Second
	logInterval    = time.Minute

	defaultMinBackoff = 250 * time.Millisecond
	defaultMaxBackoff = 15 * time.Second
)

// Limits of what is kept and read.
const (
	maxMessage   = 32 << 20 // bytes
	maxErrorText = 1 << 10  // bytes
	ackQueue     = 16       // then reading waits until acknowledgements are sent
)

// Update is what one response changes.
type Update struct {
	Type      hauberkv1.ResourceType
	Resources []*hauberkv1.Resource
	// Removed are names that exist no more, or never did.
	Removed []string
	// Complete: with this update, all of Type that All stands for was handed
	// over on this connection.
	Complete bool
}

// Handler takes updates. It is called by one goroutine, one update at a time. An
// error rejects the update as a whole, and its text is sent to the server; the
// handler must then have applied nothing of it. After Unsubscribe an update of
// the name that was under way may still arrive.
type Handler interface {
	Apply(Update) error
}

// HandlerFunc is a function that is a Handler.
type HandlerFunc func(Update) error

// Apply calls f.
func (f HandlerFunc) Apply(u Update) error { return f(u) }

// Options of a Client.
type Options struct {
	// Address of the control plane, host:port.
	Address string
	// TLS proves the client's identity and expects the control plane's; see
	// identity.ClientTLS.
	TLS     *tls.Config
	Handler Handler
	// Types that are subscribed with All from the start.
	Types []hauberkv1.ResourceType
	// Version of the client's program.
	Version string
	Log     *slog.Logger

	// Ready delays the first connection until it is closed, such as
	// identity.Source.Ready; nil does not wait.
	Ready <-chan struct{}
	// Backoff between connections: it doubles from Min to Max, with jitter.
	// Zero means 250 ms and 15 s.
	MinBackoff, MaxBackoff time.Duration
	// Dial replaces the network's dialler; nil dials TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

func (o Options) validate() error {
	switch {
	case o.Address == "":
		return errors.New("discovery: address of the control plane is empty")
	case o.TLS == nil:
		return errors.New("discovery: TLS configuration is missing; the stream is never in clear")
	case o.Handler == nil:
		return errors.New("discovery: handler is missing")
	case o.Log == nil:
		return errors.New("discovery: logger is missing")
	case o.MinBackoff < 0, o.MaxBackoff < o.MinBackoff:
		return fmt.Errorf("discovery: backoff from %s to %s is not a range", o.MinBackoff, o.MaxBackoff)
	case slices.Contains(o.Types, hauberkv1.ResourceType_RESOURCE_TYPE_UNSPECIFIED):
		return errors.New("discovery: a type to subscribe to is unspecified")
	}
	return nil
}

// Client keeps one stream to the control plane. All methods are safe for
// concurrent use and do not block on the network, Run excepted.
type Client struct {
	opts    Options       // set once
	wake    chan struct{} // size 1: there is something to send
	running atomic.Bool

	mu    sync.Mutex
	state state // guarded by mu
}

// New checks the options; Run connects.
func New(opts Options) (*Client, error) {
	if opts.MinBackoff == 0 {
		opts.MinBackoff = defaultMinBackoff
	}
	if opts.MaxBackoff == 0 {
		opts.MaxBackoff = max(defaultMaxBackoff, opts.MinBackoff)
	}
	if err := opts.validate(); err != nil {
		return nil, err
	}
	c := &Client{opts: opts, wake: make(chan struct{}, 1), state: newState()}
	for _, t := range opts.Types {
		c.state.subscribe(t, All)
	}
	return c, nil
}

// Subscribe asks for names of a type, existing or not yet; it is remembered over
// reconnections. A name that is already subscribed is not asked for again.
func (c *Client) Subscribe(t hauberkv1.ResourceType, names ...string) {
	c.mu.Lock()
	c.state.subscribe(t, names...)
	c.mu.Unlock()
	c.signal()
}

// Unsubscribe forgets names of a type. The handler hears nothing of it.
func (c *Client) Unsubscribe(t hauberkv1.ResourceType, names ...string) {
	c.mu.Lock()
	c.state.unsubscribe(t, names...)
	c.mu.Unlock()
	c.signal()
}

// Report tells the control plane about the node. The last report wins and is
// sent again on each connection; it is copied.
func (c *Client) Report(report *hauberkv1.NodeReport) {
	report = proto.CloneOf(report)
	c.mu.Lock()
	c.state.report, c.state.reportPending = report, true
	c.mu.Unlock()
	c.signal()
}

// Connected says whether the control plane answered on the present stream.
func (c *Client) Connected() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state.connected
}

// LastSync is when the client last had all that All stands for of every type it
// subscribed so: now, while the stream lives and every type was completed; the
// end of the last such stream otherwise; the zero time if there was none.
func (c *Client) LastSync() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state.synced() {
		return time.Now()
	}
	return c.state.lastSync
}

func (c *Client) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run keeps the stream until ctx ends, reconnecting for ever, and then returns
// nil. It returns an error only when it is called twice.
func (c *Client) Run(ctx context.Context) error {
	if c.running.Swap(true) {
		return errors.New("discovery: Run was called twice")
	}
	if c.opts.Ready != nil {
		select {
		case <-c.opts.Ready:
		case <-ctx.Done():
			return nil
		}
	}
	var quiet quietLog
	delay := c.opts.MinBackoff
	for {
		lived, err := c.connect(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if lived >= stableAfter {
			delay = c.opts.MinBackoff
		}
		// Full jitter in the upper half: a restarted control plane must not see
		// all its clients in the same moment.
		wait := delay/2 + rand.N(delay/2+1)
		delay = min(2*delay, c.opts.MaxBackoff)
		if quiet.allow(err) {
			c.opts.Log.Warn("config stream ended, reconnecting; what was received stays in force",
				"address", c.opts.Address, "error", err, "lived", lived.Round(time.Millisecond), "retry_in", wait.Round(time.Millisecond))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// connect serves one connection and returns how long the server answered on it
// and why it ended.
func (c *Client) connect(ctx context.Context) (lived time.Duration, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(c.opts.TLS)),
		// A proxy from the environment must not come between us.
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: connectTimeout}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: KeepaliveTime, Timeout: KeepaliveTimeout, PermitWithoutStream: true,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
	}
	if c.opts.Dial != nil {
		options = append(options, grpc.WithContextDialer(c.opts.Dial))
	}
	conn, err := grpc.NewClient("passthrough:///"+c.opts.Address, options...)
	if err != nil {
		return 0, fmt.Errorf("control plane %s: %w", c.opts.Address, err)
	}
	defer conn.Close()
	stream, err := hauberkv1.NewDiscoveryClient(conn).Stream(ctx)
	if err != nil {
		return 0, streamError(err)
	}

	c.mu.Lock()
	c.state.begin()
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.state.end(time.Now())
		c.mu.Unlock()
	}()

	acks := make(chan *hauberkv1.DiscoveryRequest, ackQueue)
	var sender sync.WaitGroup
	sender.Go(func() { cancel(c.send(ctx, stream, acks, cancel)) })
	defer sender.Wait()
	// Before sender.Wait: the sender ends with the context.
	defer cancel(nil)

	var first time.Time
	for {
		response, err := stream.Recv()
		if err != nil {
			if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
				err = cause
			}
			if !first.IsZero() {
				lived = time.Since(first)
			}
			return lived, streamError(err)
		}
		if first.IsZero() {
			first = time.Now()
			c.opts.Log.Info("config stream answered", "address", c.opts.Address)
		}
		ack := c.receive(response)
		select {
		case acks <- ack:
		case <-ctx.Done():
			// Recv says why.
		}
	}
}

// receive applies one response and returns its acknowledgement.
func (c *Client) receive(response *hauberkv1.DiscoveryResponse) *hauberkv1.DiscoveryRequest {
	ack := &hauberkv1.DiscoveryRequest{Type: response.GetType(), ResponseNonce: response.GetNonce()}
	if err := check(response); err != nil {
		c.reject(ack, err)
		return ack
	}
	c.mu.Lock()
	c.state.connected = true
	update := c.state.update(response)
	c.mu.Unlock()
	if len(update.Resources) > 0 || len(update.Removed) > 0 || update.Complete {
		if err := c.opts.Handler.Apply(update); err != nil {
			c.reject(ack, err)
			return ack
		}
	}
	c.mu.Lock()
	c.state.commit(update)
	c.mu.Unlock()
	return ack
}

func (c *Client) reject(ack *hauberkv1.DiscoveryRequest, err error) {
	ack.Error = errorText(err)
	c.opts.Log.Warn("config update rejected; the former state stays in force",
		"type", ack.GetType().String(), "error", err)
}

// send writes what is pending and the acknowledgements, until the context ends.
// It is the only writer of the stream.
func (c *Client) send(ctx context.Context, stream hauberkv1.Discovery_StreamClient, acks <-chan *hauberkv1.DiscoveryRequest, cancel context.CancelCauseFunc) error {
	write := func(request *hauberkv1.DiscoveryRequest) error {
		// A server that does not read blocks Send for ever; keepalives do not
		// notice, because its transport still answers.
		guard := time.AfterFunc(sendTimeout, func() {
			cancel(fmt.Errorf("control plane did not read a request for %s", sendTimeout))
		})
		defer guard.Stop()
		if err := stream.Send(request); err != nil {
			// Recv has the status.
			return context.Canceled
		}
		return nil
	}
	hello := true
	for {
		c.mu.Lock()
		requests := c.state.requests()
		c.mu.Unlock()
		if hello && len(requests) == 0 {
			requests = append(requests, &hauberkv1.DiscoveryRequest{})
		}
		for _, request := range requests {
			if hello {
				request.ClientVersion = c.opts.Version
				hello = false
			}
			if err := write(request); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.wake:
		case ack := <-acks:
			if err := write(ack); err != nil {
				return err
			}
		}
	}
}

// streamError puts the status of gRPC into words.
func streamError(err error) error {
	if s, ok := status.FromError(err); ok {
		return fmt.Errorf("%s: %s", s.Code(), s.Message())
	}
	return err
}

// quietLog lets the same error through once in logInterval.
type quietLog struct {
	text string
	at   time.Time
}

func (q *quietLog) allow(err error) bool {
	text := fmt.Sprint(err)
	if text == q.text && time.Since(q.at) < logInterval {
		return false
	}
	q.text, q.at = text, time.Now()
	return true
}
