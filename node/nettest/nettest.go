// Package nettest makes networks of real namespaces for packet-level tests: a
// router with hosts attached by veth pairs, as a node has pods. It owns nothing
// outside of the namespaces that it makes, and takes them away with the test.
package nettest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NS is a network namespace. It lives as long as the test.
type NS struct {
	t      testing.TB
	handle netns.NsHandle
}

// RequireRoot skips the test when namespaces cannot be made, and says what is
// left out.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("packet-level test left out: making network namespaces needs root")
	}
}

// New makes a namespace with loopback up and forwarding on.
func New(t testing.TB) *NS {
	t.Helper()
	RequireRoot(t)
	ns := &NS{t: t}
	made := make(chan error)
	go func() {
		// The thread is spoilt by unshare and ends with this goroutine.
		runtime.LockOSThread()
		made <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("unshare network namespace: %w", err)
			}
			h, err := netns.Get()
			if err != nil {
				return err
			}
			ns.handle = h
			return nil
		}()
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.handle.Close() })
	ns.Do(func() {
		lo, err := netlink.LinkByName("lo")
		ns.must(err)
		ns.must(netlink.LinkSetUp(lo))
		for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
			ns.must(os.WriteFile(filepath.Join("/proc/sys", key), []byte("1"), 0))
		}
	})
	return ns
}

func (ns *NS) must(err error) {
	ns.t.Helper()
	if err != nil {
		ns.t.Fatal(err)
	}
}

// Path is a path by which other processes, and CNI plugins, enter the
// namespace.
func (ns *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(ns.handle)) }

// Do runs f on a thread in the namespace and waits for it. Sockets that f opens
// stay in the namespace; goroutines that it starts do not.
func (ns *NS) Do(f func()) {
	ns.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		var err error
		defer func() { done <- err }()
		if err = netns.Set(ns.handle); err != nil {
			return
		}
		f()
	}()
	if err := <-done; err != nil {
		ns.t.Fatalf("enter network namespace: %v", err)
	}
}

// Attach links a new namespace to ns as the ptp plugin does: a veth pair whose
// host end is called host, addresses of full length in the pod, routes to them
// on the host, and the host end's own addresses as the pod's gateway.
func (ns *NS) Attach(host string, addrs ...string) *NS {
	ns.t.Helper()
	pod := New(ns.t)
	ns.Do(func() {
		ns.must(netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: host}, PeerName: "eth0", PeerNamespace: netlink.NsFd(pod.handle),
		}))
		link, err := netlink.LinkByName(host)
		ns.must(err)
		ns.must(netlink.LinkSetUp(link))
		for _, gw := range []string{"169.254.1.1/32", "fe80::1/64"} {
			a, err := netlink.ParseAddr(gw)
			ns.must(err)
			a.Flags = unix.IFA_F_NODAD
			ns.must(netlink.AddrAdd(link, a))
		}
		for _, text := range addrs {
			a := netip.MustParseAddr(text)
			ns.must(netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: full(a), Scope: netlink.SCOPE_LINK}))
		}
	})
	pod.Do(func() {
		link, err := netlink.LinkByName("eth0")
		pod.must(err)
		for _, text := range addrs {
			pod.must(netlink.AddrAdd(link, &netlink.Addr{IPNet: full(netip.MustParseAddr(text)), Flags: unix.IFA_F_NODAD}))
		}
		pod.must(netlink.LinkSetUp(link))
		for _, gw := range []string{"169.254.1.1", "fe80::1"} {
			addr := netip.MustParseAddr(gw)
			all := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
			if addr.Is6() {
				all = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
			}
			pod.must(netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: all, Gw: addr.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}))
		}
	})
	return pod
}

func full(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}
