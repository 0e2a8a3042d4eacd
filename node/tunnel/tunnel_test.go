package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"sigs.k8s.io/knftables"

	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/node/nettest"
)

// TestMain lets the test binary be the device's own process, as on a node.
func TestMain(m *testing.M) {
	if name := os.Getenv("HAUBERK_TEST_DEVICE"); name != "" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		err := RunDevice(ctx, name, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		stop()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// node is a host with a tunnel, and one pod on it.
type node struct {
	t      *testing.T
	ns     *nettest.NS
	pod    *nettest.NS
	name   string // of the link
	tunnel *Tunnel
	addr   netip.Addr // underlay
	pods   []netip.Prefix
	podIPs []netip.Addr
	device *exec.Cmd
}

type nftIn struct {
	ns *nettest.NS
	knftables.Interface
}

func (n nftIn) Run(ctx context.Context, tx *knftables.Transaction) (err error) {
	n.ns.Do(func() { err = n.Interface.Run(ctx, tx) })
	return err
}

func newNode(t *testing.T, i int) *node {
	n := &node{t: t, ns: nettest.New(t), name: fmt.Sprintf("hbk-test%d", i), addr: netip.AddrFrom4([4]byte{192, 168, 77, byte(i)})}
	n.podIPs = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.7.%d.2", i)), netip.MustParseAddr(fmt.Sprintf("fd00:7:%d::2", i))}
	n.pods = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.7.%d.0/24", i)), netip.MustParsePrefix(fmt.Sprintf("fd00:7:%d::/64", i))}
	n.pod = n.ns.Attach("veth-pod", n.podIPs[0].String(), n.podIPs[1].String())
	nft := nftIn{ns: n.ns}
	n.ns.Do(func() {
		var err error
		if nft.Interface, err = knftables.New(knftables.InetFamily, names.TunnelTable); err != nil {
			t.Error(err)
		}
	})
	tunnel, err := New(Options{Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Interface: n.name, NFT: nft})
	if err != nil {
		t.Fatal(err)
	}
	n.tunnel = tunnel
	return n
}

// startDevice runs the device's process in the node's namespace.
func (n *node) startDevice() {
	n.t.Helper()
	cmd := exec.Command("nsenter", "--net="+n.ns.Path(), os.Args[0])
	cmd.Env = append(os.Environ(), "HAUBERK_TEST_DEVICE="+n.name)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.device = cmd
	n.t.Cleanup(func() { n.stopDevice(syscall.SIGTERM) })
}

func (n *node) stopDevice(sig syscall.Signal) {
	if n.device == nil {
		return
	}
	_ = n.device.Process.Signal(sig)
	_ = n.device.Wait()
	n.device = nil
}

func (n *node) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.ns.Do(func() {
			if err := n.tunnel.Run(ctx); err != nil {
				n.t.Error(err)
			}
		})
	}()
	n.t.Cleanup(func() { cancel(); <-done })
}

func (n *node) peer() Peer {
	return Peer{Node: n.name, PublicKey: n.tunnel.PublicKey(), Endpoints: []netip.AddrPort{netip.AddrPortFrom(n.addr, names.PortTunnel)}, AllowedIPs: n.pods}
}

func (n *node) apply(s State) {
	n.t.Helper()
	var err error
	n.ns.Do(func() { err = n.tunnel.Apply(n.t.Context(), s) })
	if err != nil {
		n.t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("within 20 s it was not so: %s", what)
}

// connect joins the nodes by an underlay that knows the way to each other's
// pods, as a cluster without a mesh does.
func connect(t *testing.T, a, b *node) {
	t.Helper()
	var err error
	a.ns.Do(func() {
		if err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "under"}, PeerName: "under0"}); err != nil {
			return
		}
		var far netlink.Link
		if far, err = netlink.LinkByName("under0"); err == nil {
			var h int
			if h, err = unix.Open(b.ns.Path(), unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
				defer unix.Close(h)
				err = netlink.LinkSetNsFd(far, h)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	up := func(n, other *node, link string) {
		n.ns.Do(func() {
			l, e := netlink.LinkByName(link)
			if e == nil {
				e = netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(n.addr, 24))})
			}
			v6 := func(a netip.Addr) netip.Addr { return netip.MustParseAddr("fd77::" + a.String()[len("192.168.77."):]) }
			if e == nil {
				e = netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(v6(n.addr), 64)), Flags: unix.IFA_F_NODAD})
			}
			if e == nil {
				e = netlink.LinkSetUp(l)
			}
			for i, p := range other.pods {
				gw := other.addr
				if i == 1 {
					gw = v6(gw)
				}
				if e == nil {
					e = netlink.RouteAdd(&netlink.Route{Dst: ipNet(p), Gw: gw.AsSlice(), LinkIndex: l.Attrs().Index})
				}
			}
			if e != nil {
				err = e
			}
		})
	}
	up(a, b, "under")
	up(b, a, "under0")
	if err != nil {
		t.Fatal(err)
	}
}

// departed leads all that has no route of its own to the other node.
func departed(t *testing.T, n, other *node) {
	t.Helper()
	l, err := netlink.LinkByName("under")
	if err != nil {
		t.Fatal(err)
	}
	for gw, dst := range map[string]string{other.addr.String(): "0.0.0.0/0", "fd77::2": "::/0"} {
		if err := netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix(dst)), Gw: net.ParseIP(gw), LinkIndex: l.Attrs().Index}); err != nil {
			t.Fatal(err)
		}
	}
}

// dial tries to reach port 8080 of an address from the node's pod, and wants an
// answer.
func (n *node) dial(network, to string) (err error) {
	n.pod.Do(func() {
		var c net.Conn
		if c, err = net.DialTimeout(network, net.JoinHostPort(to, "8080"), 500*time.Millisecond); err != nil {
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(200 * time.Millisecond))
		if _, err = c.Write([]byte("hello")); err == nil {
			_, err = c.Read(make([]byte, 16))
		}
	})
	return err
}

// echo sends n bytes by UDP from one pod to the other and back.
func echo(from, to *node, family, n int) bool {
	ok := false
	var server net.PacketConn
	var err error
	to.pod.Do(func() { server, err = net.ListenPacket("udp", netip.AddrPortFrom(to.podIPs[family], 0).String()) })
	if err != nil {
		to.t.Error(err)
		return false
	}
	defer server.Close()
	go func() {
		buf := make([]byte, 65536)
		if n, a, err := server.ReadFrom(buf); err == nil {
			_, _ = server.WriteTo(buf[:n], a)
		}
	}()
	from.pod.Do(func() {
		c, err := net.Dial("udp", server.LocalAddr().String())
		if err != nil {
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(500 * time.Millisecond))
		if _, err := c.Write(make([]byte, n)); err != nil {
			return
		}
		got, err := c.Read(make([]byte, 65536))
		ok = err == nil && got == n
	})
	return ok
}

// sniff counts packets between pods on the underlay while f runs.
func (n *node) sniff(link string, f func()) (clear, encrypted int) {
	n.t.Helper()
	var fd int
	var err error
	n.ns.Do(func() {
		var l netlink.Link
		if l, err = netlink.LinkByName(link); err != nil {
			return
		}
		all := uint16(unix.ETH_P_ALL)>>8 | uint16(unix.ETH_P_ALL)<<8
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, int(all)); err != nil {
			return
		}
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Attrs().Index})
	})
	if err != nil {
		n.t.Fatal(err)
	}
	defer unix.Close(fd)
	f()
	buf := make([]byte, 65536)
	for {
		got, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return clear, encrypted
		}
		p := buf[:got]
		switch {
		case got >= 20 && p[0]>>4 == 4 && p[12] == 10 && p[13] == 7, got >= 40 && p[0]>>4 == 6 && p[8] == 0xfd && p[9] == 0 && p[11] == 7:
			clear++
		case got >= 28 && p[0]>>4 == 4 && p[9] == unix.IPPROTO_UDP:
			encrypted++
		}
	}
}

func TestTunnel(t *testing.T) {
	nettest.RequireRoot(t)
	a, b := newNode(t, 1), newNode(t, 2)
	connect(t, a, b)

	eventually(t, "pods reach each other without a tunnel", func() bool { return echo(a, b, 0, 100) && echo(a, b, 1, 100) })
	if clear, _ := a.sniff("under", func() { echo(a, b, 0, 100) }); clear == 0 {
		t.Fatal("the sniffer sees no clear packets where there are some: it would prove nothing")
	}

	cidrs := append(append([]netip.Prefix{}, a.pods...), b.pods...)
	a.run()
	b.run()

	// Strict, before there is any tunnel: closed, not clear.
	noKey := func(p Peer) Peer { p.PublicKey = wgtypes.Key{}; return p }
	a.apply(State{Enabled: true, Strict: true, Peers: []Peer{noKey(b.peer())}, PodCIDRs: cidrs})
	clear, _ := a.sniff("under", func() {
		if echo(a, b, 0, 100) || echo(a, b, 1, 100) {
			t.Error("strict mode without a tunnel let pod traffic pass")
		}
	})
	if clear != 0 {
		t.Errorf("%d packets left in the clear", clear)
	}

	a.startDevice()
	b.startDevice()
	for _, n := range []*node{a, b} {
		select {
		case <-n.tunnel.Known():
		case <-time.After(20 * time.Second):
			t.Fatalf("no key after 20 s: %+v", n.tunnel.Status())
		}
	}
	apply := func() {
		t.Helper()
		a.apply(State{Enabled: true, Strict: true, Peers: []Peer{b.peer()}, PodCIDRs: cidrs, Local: a.pods})
		b.apply(State{Enabled: true, Strict: true, Peers: []Peer{a.peer()}, PodCIDRs: cidrs, Local: b.pods})
	}
	apply()
	whole := func() bool { return echo(a, b, 0, 100) && echo(b, a, 1, 100) }
	eventually(t, "pods reach each other by the tunnel", whole)
	clear, encrypted := a.sniff("under", func() {
		for _, size := range []int{1, 1000, 1392, 4000} {
			for family := range 2 {
				// The first large packet of each side may only teach it the path's MTU (RFC
				// 1191, RFC 8201).
				passed := false
				for try := 0; try < 3 && !passed; try++ {
					passed = echo(a, b, family, size)
				}
				if !passed {
					t.Errorf("%d bytes do not pass (family %d)", size, family)
				}
			}
		}
	})
	if clear != 0 || encrypted == 0 {
		t.Errorf("on the underlay: %d clear and %d encrypted packets, want 0 and some", clear, encrypted)
	}
	// A pod of a that has gone: without a route of its own its address has b's
	// node as the next hop, as a default route would have it.
	a.ns.Do(func() { departed(t, a, b) })
	for _, from := range []*node{a, b} {
		for _, to := range []string{"10.7.1.9", "fd00:7:1::9"} {
			clear, _ := a.sniff("under", func() {
				if got := from.dial("tcp", to); !errors.Is(got, unix.ECONNREFUSED) {
					t.Errorf("TCP from a pod of %s to %s, which has gone: %v, want it refused", from.name, to, got)
				}
				if from.dial("udp", to) == nil {
					t.Errorf("UDP from a pod of %s to %s, which has gone: an answer", from.name, to)
				}
			})
			if clear != 0 {
				t.Errorf("from a pod of %s to %s, which has gone: %d packets left in the clear", from.name, to, clear)
			}
		}
	}

	var s Status
	a.ns.Do(func() { s = a.tunnel.Status() })
	if s.MTU != 1420 || s.Backend != "userspace" && s.Backend != "kernel" || len(s.Peers) != 1 || s.Peers[0].LastHandshake.IsZero() || s.Problem != "" {
		t.Errorf("status: %+v", s)
	}

	if a.tunnel.Backend() == "userspace" {
		// The device dies: closed. It comes back: whole, with the same key.
		key := a.tunnel.PublicKey()
		a.stopDevice(syscall.SIGKILL)
		clear, _ = a.sniff("under", func() { echo(a, b, 0, 100); echo(a, b, 1, 100) })
		if clear != 0 {
			t.Errorf("%d packets left in the clear while the device was dead", clear)
		}
		a.startDevice()
		eventually(t, "the tunnel heals after its device died", whole)
		if a.tunnel.PublicKey() != key {
			t.Error("the node's key changed without need")
		}
	}

	// A restarted agent finds the key in the device.
	again, err := New(Options{Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Interface: a.name, NFT: a.tunnel.nft})
	if err != nil {
		t.Fatal(err)
	}
	key := a.tunnel.PublicKey()
	a.tunnel = again
	a.run()
	<-again.Known()
	if again.PublicKey() != key {
		t.Error("a restarted agent did not take the key from the device")
	}
	if !whole() {
		t.Error("a restarted agent broke the tunnel")
	}

	// A wrong key: nothing passes.
	wrong, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	p := b.peer()
	p.PublicKey = wrong.PublicKey()
	a.apply(State{Enabled: true, Strict: true, Peers: []Peer{p}, PodCIDRs: cidrs})
	eventually(t, "a peer with another key is cut off", func() bool { return !echo(a, b, 0, 100) && !echo(b, a, 0, 100) })

	// Disabled: everything is taken away and the underlay carries again.
	a.apply(State{})
	b.apply(State{})
	eventually(t, "without encryption the underlay carries", whole)
	for _, n := range []*node{a, b} {
		n.ns.Do(func() {
			out, _ := exec.Command("sh", "-c", "ip rule; ip -6 rule; nft list tables").CombinedOutput()
			if text := string(out); strings.Contains(text, "5187") || strings.Contains(text, names.TunnelTable) {
				t.Errorf("left behind:\n%s", text)
			}
		})
	}
}
