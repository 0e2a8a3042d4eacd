package inbound

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"time"

	"github.com/hauberk-mesh/hauberk/proxy/http1"
)

// alpnPrefix marks a handshake of one of our sidecars.
const alpnPrefix = "hauberk/"

var errNotOurs = errors.New("the ClientHello offers none of our protocols")

// tlsRecordHandshake is the first byte of every ClientHello.
const tlsRecordHandshake = 0x16

// helloConn stands between a connection and crypto/tls until the ClientHello
// is understood. crypto/tls itself reads it, so that no second parser can
// disagree about fragments; what it read is kept, and what it answers is held
// back, so that a handshake that is not for us can be passed on untouched.
type helloConn struct {
	net.Conn
	r     *http1.Reader
	kept  []byte
	ours  bool
	heard bool // the ClientHello was complete
}

// maxHello bounds what is kept while a client may be anybody: a ClientHello with
// post-quantum shares has 2 KB.
const maxHello = 32 << 10

// Read reads what was peeked at first.
func (c *helloConn) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if !c.ours {
		if len(c.kept)+n > maxHello {
			return 0, errNotOurs
		}
		c.kept = append(c.kept, p[:n]...)
	}
	return n, err
}

// Write drops what is not known to be for one of ours, such as an alert.
func (c *helloConn) Write(p []byte) (int, error) {
	if !c.ours {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// NetConn is the connection underneath.
func (c *helloConn) NetConn() net.Conn { return c.Conn }

// CloseWrite ends our direction.
func (c *helloConn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Conn.Close()
}

// withHello makes a server's configuration accept only our handshakes.
func withHello(config *tls.Config) *tls.Config {
	config = config.Clone()
	config.DynamicRecordSizingDisabled = true
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c, ok := hello.Conn.(*helloConn)
		if !ok {
			return nil, errNotOurs
		}
		c.heard = true
		for _, p := range hello.SupportedProtos {
			if strings.HasPrefix(p, alpnPrefix) {
				c.ours, c.kept = true, nil
				return nil, nil
			}
		}
		return nil, errNotOurs
	}
	return config
}

// accept runs the handshake of a connection whose first byte is a ClientHello's.
// When the handshake is not for us, conn is nil, err is nil, and first is all
// that was read. An error is a handshake that was for us and failed, or one
// that never came to its end.
func accept(ctx context.Context, raw net.Conn, r *http1.Reader, config *tls.Config, timeout time.Duration) (conn *tls.Conn, first []byte, err error) {
	hello := &helloConn{Conn: raw, r: r}
	t := tls.Server(hello, config)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err = t.HandshakeContext(ctx)
	switch {
	case err == nil:
		return t, nil, nil
	case hello.ours:
		return nil, nil, err
	case hello.heard:
		return nil, hello.kept, nil
	}
	// No whole ClientHello came: too slow, ended, or not TLS after all. Only the
	// last is for the application to judge, as any plain bytes are.
	var header tls.RecordHeaderError
	if errors.As(err, &header) || isAlert(err) {
		return nil, hello.kept, nil
	}
	return nil, nil, err
}

// isAlert reports a message that crypto/tls could not parse, as opposed to a
// connection that failed.
func isAlert(err error) bool {
	var n net.Error
	return !errors.As(err, &n) && strings.HasPrefix(err.Error(), "tls: ")
}
