package http2

import (
	"bytes"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/http2/hpack"

	"github.com/hauberk-mesh/hauberk/proxy/socket"
)

// Handler is told of the streams that a client opens.
type Handler interface {
	// Open is called from the connection's reader. It may take the head's
	// contents with Swap. What it returns is told of the rest; nil means that
	// the stream was reset or answered and nothing more of it matters.
	Open(s *Stream, h *Head, end bool) Receiver
	// Bad is told of a request that never became one, with the status that was
	// answered (0 for none).
	Bad(status int, reason string)
}

// Receiver is told what arrives on a stream. Head and Data come from the
// reader of the stream's connection, one at a time; they must not block, and
// what they are given is valid until they return. Closed may come from any
// goroutine, at most once, and nothing follows it.
type Receiver interface {
	// Head is a response's head, an interim one, or trailers (end is set then).
	Head(s *Stream, h *Head, end bool)
	Data(s *Stream, p []byte, end bool)
	// Closed says that the stream ended before its end in either direction.
	Closed(s *Stream, why Closing)
}

// Closing is why a stream ended early.
type Closing struct {
	Code Code
	// Refused: the peer says that it has not acted on the stream.
	Refused bool
	// Lost: the connection ended.
	Lost bool
	// Remote: the peer reset the stream, it was not found at fault here.
	Remote bool
	// Timeout: it took too long.
	Timeout bool
	Err     error
}

// Options of a connection.
type Options struct {
	Limits   Limits
	Timeouts Timeouts
	// Handler is for servers.
	Handler Handler
}

// Conn is one connection. It is safe for concurrent use.
type Conn struct {
	// Set once.
	nc      net.Conn
	raw     syscall.RawConn // nil where the kernel can't be asked
	client  bool
	options Options
	tick    *time.Timer
	done    chan struct{} // closed when the connection is over

	in reader // owned by the reading goroutine

	mu          sync.Mutex
	streams     map[uint32]*Stream // guarded by mu, as all below
	reserved    int                // streams promised, not yet open
	nextID      uint32             // client: of the next stream
	lastPeer    uint32             // server: the highest that the client opened
	gone        [64]uint32         // the last that we reset: what the peer sent before it knew is no fault
	goneNext    int
	state       stage
	lastGood    uint32 // of the final GOAWAY, sent or received
	err         error  // why it ended
	blocked     bool   // the reader waits for input: nobody but the writer of output will write it
	settled     bool   // the peer's SETTINGS came
	since       time.Time
	idleSince   time.Time
	blockSince  time.Time // of a header block that has begun
	writeBy     time.Time
	peerStreams uint32
	peerFrame   int
	peerWindow  int // initial, of streams

	out, spare []byte
	writing    bool
	memory     [memInfo]uint32 // what ask found
	ask        func(uintptr)   // askMemory, bound once
	quiet      sync.Cond       // writing became false
	sendWindow int
	ready      []*Stream
	enc        *hpack.Encoder
	block      bytes.Buffer

	recvWindow int
	uncredited int // received since the last refill of the connection's window
	queued     int // received on streams that are open and not passed on

	control, resets budget
}

// stage is how far a connection is on its way out.
type stage uint8

const (
	open      stage = iota
	announced       // GOAWAY with the highest id was sent
	leaving         // no new streams
	closing         // the last frames were sent
)

var errClosed = errors.New("http/2: connection closed")

// ErrUnavailable is a connection that takes no more streams.
var ErrUnavailable = errors.New("http/2: connection takes no more streams")

func newConn(nc net.Conn, first []byte, client bool, o Options) *Conn {
	now := time.Now()
	c := &Conn{nc: nc, client: client, options: o, done: make(chan struct{}), streams: make(map[uint32]*Stream), nextID: 1,
		since: now, idleSince: now, peerStreams: firstStreams, peerFrame: maxFrame, peerWindow: windowDefault,
		sendWindow: windowDefault, recvWindow: connWindow,
		control: newBudget(o.Limits.Control, o.Limits.ControlRate), resets: newBudget(o.Limits.Resets, o.Limits.ResetRate)}
	c.in = reader{c: c, dec: newDecoder(&c.options.Limits)}
	c.in.start(first)
	c.enc = hpack.NewEncoder(&c.block)
	c.quiet.L = &c.mu
	c.ask = c.askMemory
	if t, ok := socket.Raw(nc).(*net.TCPConn); ok {
		if raw, err := t.SyscallConn(); err == nil {
			c.raw = raw
		}
	}
	if client {
		c.out = append(c.out, Preface...)
		c.out = appendSettings(c.out, setting{settingPush, 0}, setting{settingWindow, uint32(o.Limits.StreamWindow)},
			setting{settingHeaderList, uint32(o.Limits.HeadBytes)})
	} else {
		c.out = appendSettings(c.out, setting{settingStreams, o.Limits.Streams}, setting{settingWindow, uint32(o.Limits.StreamWindow)},
			setting{settingHeaderList, uint32(o.Limits.HeadBytes)})
	}
	c.out = appendWindow(c.out, 0, connWindow-windowDefault)
	return c
}

// NetConn is the connection underneath.
func (c *Conn) NetConn() net.Conn { return c.nc }

// Done is closed when the connection is over.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Serve carries a client's connection to its end. first is what was read of it
// already. It closes the connection. The error is nil for an orderly end.
func Serve(nc net.Conn, first []byte, o Options, started func(*Conn)) error {
	c := newConn(nc, first, false, o)
	if started != nil {
		started(c)
	}
	return c.run()
}

// NewClient begins a connection to a server and reads it in a goroutine of its
// own until it ends.
func NewClient(nc net.Conn, o Options) *Conn {
	c := newConn(nc, nil, true, o)
	c.Flush()
	go func() { _ = c.run() }()
	return c
}

// run reads until the connection is over.
func (c *Conn) run() error {
	c.mu.Lock()
	c.tick = time.AfterFunc(c.nextTick(), c.onTick)
	c.mu.Unlock()
	err := c.in.loop()
	c.mu.Lock()
	if c.err != nil {
		err = c.err // the reader was only woken
	}
	orderly := c.state == closing && c.err == nil
	c.mu.Unlock()

	var local *ConnError
	switch {
	case errors.As(err, &local) && local.Local:
		c.die(local)
		c.lastWrite(appendGoAway(nil, c.highest(), local.Code, local.Reason))
		c.linger()
	case orderly:
		c.lastWrite(nil)
		if !c.client {
			c.linger()
		}
	}
	c.tick.Stop()
	c.die(err)
	c.nc.Close()
	c.in.release()
	c.mu.Lock()
	c.out, c.spare, c.ready = nil, nil, nil
	c.mu.Unlock()
	close(c.done)
	if orderly || errors.Is(err, errClosed) || isEnd(err) {
		return nil
	}
	return err
}

// linger ends our direction and reads a little on: closing at once could make
// the kernel take back what the peer has not read.
func (c *Conn) linger() {
	if socket.CloseWrite(c.nc) != nil {
		return
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(time.Second))
	var b [4096]byte
	for total := 0; total < 256<<10; {
		n, err := c.nc.Read(b[:])
		if err != nil {
			return
		}
		total += n
	}
}

// die ends all streams.
func (c *Conn) die(err error) {
	if err == nil {
		err = errClosed
	}
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.state = max(c.state, leaving)
	list := make([]*Stream, 0, len(c.streams))
	for _, s := range c.streams {
		list = append(list, s)
	}
	var local *ConnError
	why := Closing{Code: Cancel, Lost: true, Remote: !errors.As(err, &local) || !local.Local, Err: err}
	recv := make([]Receiver, len(list))
	for i, s := range list {
		recv[i] = s.recv
		c.removeLocked(s)
	}
	c.mu.Unlock()
	for i, s := range list {
		if recv[i] != nil {
			recv[i].Closed(s, why)
		}
	}
}

// Close ends the connection and all its streams at once.
func (c *Conn) Close() { c.fail(errClosed) }

// fail makes the reader end.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	var local *ConnError
	if errors.As(err, &local) && local.Local {
		_ = c.nc.SetReadDeadline(time.Unix(1, 0)) // the reader says why
		return
	}
	c.nc.Close()
}

// Shutdown lets the streams that are open, and those that the peer opens before
// it can know, come to their end, and then ends the connection.
func (c *Conn) Shutdown() {
	c.mu.Lock()
	defer c.Flush()
	defer c.mu.Unlock()
	if c.state != open {
		return
	}
	if c.client {
		c.state = leaving
		c.maybeClose()
		return
	}
	c.state = announced
	c.out = appendGoAway(c.out, maxStreamID, NoError, "")
	c.out = append(appendHeader(c.out, 8, typePing, 0, 0), drainPing...)
	if c.tick != nil {
		c.tick.Reset(drainGrace)
	}
}

// drainPing comes back when the peer has read the first GOAWAY.
var drainPing = []byte("hauberk!")

// ShutdownIdle ends the connection if it has no streams, and otherwise does
// what Shutdown does.
func (c *Conn) ShutdownIdle() {
	c.mu.Lock()
	if len(c.streams) > 0 || c.client {
		c.mu.Unlock()
		c.Shutdown()
		return
	}
	c.lastWords()
	c.mu.Unlock()
	c.Flush()
}

// lastWords is the final GOAWAY of a server; mu is held.
func (c *Conn) lastWords() {
	if c.state >= leaving {
		return
	}
	c.state, c.lastGood = leaving, c.lastPeer
	c.out = appendGoAway(c.out, c.lastPeer, NoError, "")
	c.maybeClose()
}

// maybeClose ends a connection that is leaving when nothing is left; mu is held.
func (c *Conn) maybeClose() {
	if c.state != leaving || len(c.streams) > 0 || c.reserved > 0 {
		return
	}
	c.state = closing
	c.wakeReader()
}

// wakeReader makes the reader see that the connection is closing; mu is held.
// It writes what is unsent first.
func (c *Conn) wakeReader() {
	if c.blocked {
		_ = c.nc.SetReadDeadline(time.Unix(1, 0))
	}
}

// highest is the last stream of the peer that we know of.
func (c *Conn) highest() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lastPeer
}

// Load is how many streams are open or promised.
func (c *Conn) Load() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.streams) + c.reserved
}

// Streams is a copy of the list of those that are open.
func (c *Conn) Streams() []*Stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]*Stream, 0, len(c.streams))
	for _, s := range c.streams {
		list = append(list, s)
	}
	return list
}

// nextTick is when there may be something to look at; mu is held.
func (c *Conn) nextTick() time.Duration {
	switch {
	case !c.settled:
		return c.options.Timeouts.Preface
	case c.state == announced:
		return drainGrace
	case len(c.streams) > 0 || !c.blockSince.IsZero():
		return tickBusy
	case c.options.Timeouts.Idle > 0:
		return max(time.Until(c.idleSince.Add(c.options.Timeouts.Idle)), 100*time.Millisecond)
	}
	return tickBusy
}

// onTick finds what takes too long.
func (c *Conn) onTick() {
	now := time.Now()
	t := &c.options.Timeouts
	var late []*Stream
	var recv []Receiver
	var err error
	c.mu.Lock()
	switch {
	case c.err != nil || c.state == closing:
		c.mu.Unlock()
		return
	case !c.settled && now.Sub(c.since) >= t.Preface:
		err = fault(SettingsTimeout, "no SETTINGS in time")
	case !c.blockSince.IsZero() && now.Sub(c.blockSince) >= t.Head:
		err = fault(EnhanceYourCalm, "header block took too long")
	case c.state == announced:
		c.lastWords()
	case len(c.streams) == 0 && c.reserved == 0 && t.Idle > 0 && now.Sub(c.idleSince) >= t.Idle:
		if c.client {
			c.state = leaving
			c.maybeClose()
		} else {
			c.lastWords()
		}
	}
	for _, s := range c.streams {
		stalled := len(s.pending) > 0 && now.Sub(s.progress) >= t.Stall
		silent := c.client && s.localEnd && !s.headed && t.Response > 0 && now.Sub(s.progress) >= t.Response
		if stalled || silent {
			late = append(late, s)
			recv = append(recv, s.recv)
		}
	}
	for _, s := range late {
		c.resetLocked(s, Cancel)
	}
	c.tick.Reset(c.nextTick())
	c.mu.Unlock()
	for i, s := range late {
		if recv[i] != nil {
			recv[i].Closed(s, Closing{Code: Cancel, Timeout: true, Err: errTimeout})
		}
	}
	if err != nil {
		c.fail(err)
		return
	}
	c.Flush()
}

var errTimeout = errors.New("http/2: no progress in time")
