// Package socket sets the options of every TCP socket that the proxy opens or
// accepts: a peer that vanished is noticed in bounded time, whether something is
// under way to it (Watch) or not (keep-alive), and multipath TCP is off.
//
// It owns sockets, not what is said on them.
package socket

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 3 * time.Second, Count: 3}

// Dialer is a dialer with our options.
func Dialer(timeout time.Duration) *net.Dialer {
	d := &net.Dialer{Timeout: timeout, KeepAliveConfig: keepAlive}
	d.SetMultipathTCP(false)
	return d
}

// Listen listens on port of every IPv4 and IPv6 address, by a socket for each
// family, because SO_ORIGINAL_DST must be asked by the family of the packet.
// A host without IPv6 has one listener.
func Listen(ctx context.Context, port int) ([]net.Listener, error) {
	var listeners []net.Listener
	for _, network := range []string{"tcp4", "tcp6"} {
		l, err := ListenOn(ctx, network, fmt.Sprintf(":%d", port))
		switch {
		case err == nil:
			listeners = append(listeners, l)
		case network == "tcp6" && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)):
		default:
			for _, l := range listeners {
				l.Close()
			}
			return nil, fmt.Errorf("listen on port %d: %w", port, err)
		}
	}
	return listeners, nil
}

// ListenOn listens on one address.
func ListenOn(ctx context.Context, network, address string) (net.Listener, error) {
	config := net.ListenConfig{KeepAliveConfig: keepAlive}
	config.SetMultipathTCP(false)
	return config.Listen(ctx, network, address)
}

// Abort closes so that the peer sees an error rather than an orderly end: RST
// on TCP, and no close_notify on TLS.
func Abort(c net.Conn) {
	raw := Raw(c)
	if t, ok := raw.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	raw.Close()
}

// Raw is the connection under TLS and other wrappers that have NetConn.
func Raw(c net.Conn) net.Conn {
	for {
		u, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = u.NetConn()
	}
}

// CloseWrite ends our direction and leaves the other open.
func CloseWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}

// Alive reports whether an idle connection is still open with nothing to
// read. Anything that arrived while nobody waited for it, an end included,
// makes it useless. It costs one system call.
func Alive(c net.Conn) bool {
	t, ok := Raw(c).(*net.TCPConn)
	if !ok {
		return true
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return false
	}
	alive := false
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		// The system call itself: the wrapper allocates an address.
		_, _, errno := unix.Syscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&b[0])), 1, unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
		alive = errno == unix.EAGAIN
	})
	return err == nil && alive
}

// Handshake runs the handshake of t within timeout.
func Handshake(ctx context.Context, t *tls.Conn, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return t.HandshakeContext(ctx)
}
