package cniserver

import (
	"fmt"
	"log/slog"
	"net"

	"golang.org/x/sys/unix"
)

// rootOnly accepts connections of processes of root, whatever the socket's mode.
type rootOnly struct {
	net.Listener
	log *slog.Logger
}

// Accept returns the next connection of root and closes others.
func (l rootOnly) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		uid, err := peerUID(c)
		if err == nil && uid == 0 {
			return c, nil
		}
		l.log.Warn("refused a connection to the cni socket", "uid", uid, "error", err)
		c.Close()
	}
}

// peerUID is the user that connected, by the kernel's word (unix(7),
// SO_PEERCRED).
func peerUID(c net.Conn) (uint32, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("connection is a %T and not of a unix socket", c)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, credErr
	}
	return cred.Uid, nil
}
