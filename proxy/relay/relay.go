// Package relay passes bytes between two connections until both directions have
// ended. The end of one direction is passed on as an end (half-close), an error
// as an abort; between plain TCP sockets the kernel moves the bytes (splice).
//
// It does not own protocols, deadlines or policy.
package relay

import (
	"errors"
	"io"
	"net"
	"sync"

	"github.com/hauberk-mesh/hauberk/proxy/socket"
)

// A direction waits with a small buffer, because most connections are idle most
// of the time, and borrows one that holds a whole TLS record while more comes
// than fits. It keeps the large one over a few small reads: a message that is
// read in two parts is also sent in two.
const (
	smallSize  = 2 << 10
	largeSize  = 16 << 10
	smallReads = 16
)

var (
	small = sync.Pool{New: func() any { b := make([]byte, smallSize); return &b }}
	large = sync.Pool{New: func() any { b := make([]byte, largeSize); return &b }}
)

// End is one side. First are bytes that were read from it already and go to
// the other side before anything else.
type End struct {
	Conn  net.Conn
	First []byte
}

// Counter is told of bytes as they pass; nil counts nothing.
type Counter interface{ Add(n int64) }

// Result is how a relay ended.
type Result struct {
	// FromA and FromB are the bytes that were passed on from each side.
	FromA, FromB int64
	// ErrA and ErrB are why each side's direction ended before its end; nil for
	// an orderly one.
	ErrA, ErrB error
}

// Run relays until both directions have ended, and closes both connections.
// Who closes either connection meanwhile ends the relay.
func Run(a, b End, countA, countB Counter) Result {
	var r Result
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.FromB, r.ErrB = one(a.Conn, b, countB)
	}()
	r.FromA, r.ErrA = one(b.Conn, a, countA)
	<-done
	a.Conn.Close()
	b.Conn.Close()
	return r
}

// one passes what comes from src on to dst.
func one(dst net.Conn, src End, count Counter) (int64, error) {
	n, err := first(dst, src.First, count)
	if err == nil {
		var m int64
		m, err = stream(dst, src.Conn, count)
		n += m
	}
	if err != nil {
		socket.Abort(dst)
		socket.Abort(src.Conn)
		return n, err
	}
	// The other side may have ended everything already.
	if err := socket.CloseWrite(dst); err != nil && !errors.Is(err, net.ErrClosed) {
		return n, nil
	}
	return n, nil
}

func first(dst net.Conn, p []byte, count Counter) (int64, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := dst.Write(p)
	add(count, int64(n))
	return int64(n), err
}

func add(count Counter, n int64) {
	if count != nil {
		count.Add(n)
	}
}

func stream(dst, src net.Conn, count Counter) (int64, error) {
	if d, ok := dst.(*net.TCPConn); ok {
		if s, ok := src.(*net.TCPConn); ok {
			n, err := d.ReadFrom(s)
			add(count, n)
			return n, err
		}
	}
	pool := &small
	p := pool.Get().(*[]byte)
	defer func() { pool.Put(p) }()
	var total int64
	few := 0 // small reads in a row into a large buffer
	for {
		n, err := src.Read(*p)
		if n > 0 {
			m, werr := dst.Write((*p)[:n])
			total += int64(m)
			add(count, int64(m))
			if werr != nil {
				return total, werr
			}
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		switch {
		case pool == &small && n == smallSize:
			p, pool, few = swap(p, pool, &large), &large, 0
		case pool == &large && n > smallSize:
			few = 0
		case pool == &large:
			if few++; few == smallReads {
				p, pool = swap(p, pool, &small), &small
			}
		}
	}
}

// swap gives a buffer back to one pool and takes one of another.
func swap(p *[]byte, from, to *sync.Pool) *[]byte {
	from.Put(p)
	return to.Get().(*[]byte)
}
