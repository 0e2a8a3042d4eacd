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

// bufferSize holds a whole TLS record.
const bufferSize = 16 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

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
	p := buffers.Get().(*[]byte)
	defer buffers.Put(p)
	var total int64
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
	}
}
