// Package http2 is a connection that speaks HTTP/2 (RFC 9113), in either role:
// frames, HPACK, flow control, the states of streams, GOAWAY, and the bounds
// that keep a peer from costing more than it may.

// It does not own requests: who may send what, where it goes and which fields
// are forwarded (proxy/streams). Nothing in it is HTTP/1.1: a message is never
// translated between the two.

// Frames are read and written here rather than with x/net's Framer, so that
// the payload of DATA goes from the read buffer of one connection into the
// write buffer of another with one copy and no frame is held for its end; HPACK
// is x/net's. One goroutine reads a connection. Whoever has something to say
// appends frames to a buffer; it is written by the reader that caused them
// before it blocks again, when the kernel is sure to take it, and by a
// goroutine of its own when not, so that no reader ever waits for a writer.

// What one connection may hold, with DefaultLimits:

//	streams              250 at a time, about 2 KB each
//	received bodies      256 KB a stream and 5 MB a connection, until they are passed on
//	unsent frames        64 KB of DATA and heads before senders wait, 256 KB in all
//	header block         64 KB and 128 fields decoded, 128 KB and 32 frames encoded
//	HPACK tables         4 KB each way
//	read buffer          2 KB idle, 32 KB while more comes

// What costs a peer little and us something is paid for from a budget that
// time and useful frames refill: PING, SETTINGS, PRIORITY, WINDOW_UPDATE,
// empty DATA and unknown frames from one, streams that are reset from another
// (rapid reset, CVE-2023-44487, the resets that we are made to send included).
// A peer that has spent it gets GOAWAY with ENHANCE_YOUR_CALM.
package http2

import "time"

// Limits bound what a connection may cost.
type Limits struct {
	// Streams is how many the peer may have open.
	Streams uint32
	// StreamWindow is how much of a body is received before it is passed on,
	// and Queued how much of all bodies of the connection.
	StreamWindow, Queued int
	// HeadBytes and Fields bound a decoded header block, counted as HPACK does
	// (32 bytes a field beside its text); BlockBytes and BlockFrames the encoded.
	HeadBytes, Fields       int
	BlockBytes, BlockFrames int
	// Control and Resets are the budgets' sizes, ControlRate and ResetRate how
	// much of them comes back in a second.
	Control, ControlRate int
	Resets, ResetRate    int
	// Unsent bounds what waits to be written.
	Unsent int
}

// DefaultLimits are what the sidecar uses.
var DefaultLimits = Limits{
	Streams: 250, StreamWindow: 256 << 10, Queued: 4 << 20,
	HeadBytes: 64 << 10, Fields: 128, BlockBytes: 128 << 10, BlockFrames: 32,
	Control: 5000, ControlRate: 1000, Resets: 500, ResetRate: 200,
	Unsent: 256 << 10,
}

// Timeouts bound the phases of a connection and of its streams.
type Timeouts struct {
	Preface  time.Duration // until the peer's first SETTINGS
	Idle     time.Duration // without a stream; zero for ever
	Head     time.Duration // from a header block's first frame to its last
	Write    time.Duration // without progress of a write
	Stall    time.Duration // of a body that the peer gives no window for
	Response time.Duration // from a request's end to its response's head
}

// Sizes that are not a matter of limits.
const (
	windowDefault = 65535    // RFC 9113 section 6.9.2
	connWindow    = 1 << 20  // what the peer may send before the connection's window is refilled
	maxFrame      = 16384    // the least that a peer must accept, and the most that we do
	unsentData    = 64 << 10 // unsent bytes from which on bodies wait
	inlineBytes   = 16 << 10 // an empty socket takes one such write for certain
	smallRead     = 2 << 10
	largeRead     = 32 << 10
	tableSize     = 4096 // of HPACK, each way
	maxWindow     = 1<<31 - 1
	firstStreams  = 100 // assumed of a server until it says
	maxStreamID   = 1<<31 - 1
	tickBusy      = 5 * time.Second
	drainGrace    = time.Second // between the two GOAWAYs, when no PING comes back
)
