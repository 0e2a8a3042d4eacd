// Package capture tells where a redirected connection was going. It asks the
// kernel's connection tracking, which remembers the destination that the
// REDIRECT rule in the pod replaced, and refuses connections that were not
// redirected, because answering those would have the proxy call itself.
//
// It does not own the rules that redirect (node/redirect).
package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrLoop is a connection whose destination is the listener itself.
var ErrLoop = errors.New("connection was made to the proxy's own listener, not redirected to it")

// soOriginalDst is SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST, which are equal.
const soOriginalDst = 80

// OriginalDestination is where c was going before it was redirected to the
// listener that accepted it. own are ports that are the proxy's: a destination
// of one of them at the accepting address is ErrLoop.
func OriginalDestination(c net.Conn, own ...uint16) (netip.AddrPort, error) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("original destination of a %T: not TCP", c)
	}
	local, ok := c.LocalAddr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("original destination: local address %v is not TCP", c.LocalAddr())
	}
	localAddr := local.AddrPort().Addr().Unmap()
	raw, err := t.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	var dst netip.AddrPort
	var sockErr error
	if err := raw.Control(func(fd uintptr) {
		if localAddr.Is4() {
			dst, sockErr = ask4(int(fd))
		} else {
			dst, sockErr = ask6(int(fd))
		}
	}); err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	if errors.Is(sockErr, unix.ENOENT) {
		return netip.AddrPort{}, ErrLoop
	}
	if sockErr != nil {
		return netip.AddrPort{}, fmt.Errorf("ask the kernel for the original destination: %w", sockErr)
	}
	if dst.Addr() == localAddr || dst.Addr().IsLoopback() {
		if dst.Port() == uint16(local.Port) {
			return dst, ErrLoop
		}
		for _, p := range own {
			if dst.Port() == p {
				return dst, ErrLoop
			}
		}
	}
	return dst, nil
}

func ask4(fd int) (netip.AddrPort, error) {
	var sa unix.RawSockaddrInet4
	if err := getsockopt(fd, unix.IPPROTO_IP, unsafe.Pointer(&sa), unsafe.Sizeof(sa)); err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), port(sa.Port)), nil
}

func ask6(fd int) (netip.AddrPort, error) {
	var sa unix.RawSockaddrInet6
	if err := getsockopt(fd, unix.IPPROTO_IPV6, unsafe.Pointer(&sa), unsafe.Sizeof(sa)); err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), port(sa.Port)), nil
}

// port turns a port in network byte order, held in the host's.
func port(p uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], p)
	return binary.BigEndian.Uint16(b[:])
}

// getsockopt is the system call itself: golang.org/x/sys/unix has no typed
// form for these two options.
func getsockopt(fd, level int, p unsafe.Pointer, size uintptr) error {
	length := uint32(size)
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), soOriginalDst,
		uintptr(p), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
