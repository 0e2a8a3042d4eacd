package firewall

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"sigs.k8s.io/knftables"

	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/node/nettest"
	"github.com/hauberk-mesh/hauberk/policy"
)

// lab is a node with pods in real network namespaces and a firewall on it.
type lab struct {
	t    testing.TB
	node *nettest.NS
	fw   *Firewall
	pods map[string]*labPod
	// next makes host addresses.
	next byte
}

type labPod struct {
	*nettest.NS
	Pod
}

func newLab(t testing.TB) *lab {
	node := nettest.New(t)
	l := &lab{t: t, node: node, pods: map[string]*labPod{}}
	fw, err := New(Options{Log: slog.New(slog.NewTextHandler(io.Discard, nil)), NFT: inNS{l, nil}.open(), Kernel: kernelIn{node}})
	if err != nil {
		t.Fatal(err)
	}
	l.fw = fw
	return l
}

// inNS runs nft in the node's namespace.
type inNS struct {
	lab *lab
	knftables.Interface
}

func (i inNS) open() inNS {
	var err error
	i.lab.node.Do(func() { i.Interface, err = knftables.New(knftables.InetFamily, names.PolicyTable) })
	if err != nil {
		i.lab.t.Fatal(err)
	}
	return i
}

func (i inNS) Run(ctx context.Context, tx *knftables.Transaction) (err error) {
	i.lab.node.Do(func() { err = i.Interface.Run(ctx, tx) })
	return err
}

// kernelIn is the kernel in a namespace.
type kernelIn struct{ ns *nettest.NS }

func (k kernelIn) Cut(f func(*netlink.ConntrackFlow) bool) (n int, err error) {
	k.ns.Do(func() { n, err = hostKernel{}.Cut(f) })
	return n, err
}

func (k kernelIn) Addresses() (list []netip.Addr, err error) {
	k.ns.Do(func() { list, err = hostKernel{}.Addresses() })
	return list, err
}

func (k kernelIn) Generation() (n uint32, err error) {
	k.ns.Do(func() { n, err = hostKernel{}.Generation() })
	return n, err
}

func (k kernelIn) Contents() (c Contents, err error) {
	k.ns.Do(func() { c, err = hostKernel{}.Contents() })
	return c, err
}

// pod starts a pod whose UID is its name.
func (l *lab) pod(name string) *labPod {
	l.t.Helper()
	l.next++
	addrs := []string{fmt.Sprintf("10.1.0.%d", l.next), fmt.Sprintf("fd00:1::%x", l.next)}
	p := &labPod{NS: l.node.Attach("veth-"+name, addrs...), Pod: Pod{
		UID: name, Namespace: "default", Name: name, ContainerID: name, HostInterface: "veth-" + name,
		Addresses: []netip.Addr{netip.MustParseAddr(addrs[0]), netip.MustParseAddr(addrs[1])},
	}}
	l.pods[name] = p
	return p
}

func (l *lab) add(p *labPod, set *policy.Set) {
	l.t.Helper()
	p.PolicySet = set
	if err := l.fw.AddPod(l.t.Context(), p.Pod); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) apply(s State) {
	l.t.Helper()
	if err := l.fw.Apply(l.t.Context(), s); err != nil {
		l.t.Fatal(err)
	}
}

// serve answers TCP and UDP on port of every address of the pod: TCP with a
// greeting and an echo, UDP with an echo.
func (p *labPod) serve(t *testing.T, port int) {
	t.Helper()
	var (
		l   net.Listener
		u   net.PacketConn
		err error
	)
	p.Do(func() {
		if l, err = net.Listen("tcp", fmt.Sprintf("[::]:%d", port)); err == nil {
			u, err = net.ListenPacket("udp", fmt.Sprintf("[::]:%d", port))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); u.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.WriteString(c, "hello")
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(buf[:n], from)
		}
	}()
}

// patience is how long a denied flow is watched. A dropped packet never comes,
// so longer only makes the test slower, and shorter can only turn an allowed
// flow on a busy machine into a failure, never the reverse.
const patience = 400 * time.Millisecond

func (p *labPod) reach(network string, to netip.Addr, port int) bool {
	ok := false
	p.Do(func() {
		c, err := net.DialTimeout(network, netip.AddrPortFrom(to, uint16(port)).String(), patience)
		if err != nil {
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		if network == "udp" {
			_, _ = c.Write([]byte("hello"))
		}
		buf := make([]byte, 5)
		_, err = io.ReadFull(c, buf)
		ok = err == nil && string(buf) == "hello"
	})
	return ok
}

func (l *lab) rules() string {
	var out []byte
	l.node.Do(func() { out, _ = exec.Command("nft", "list", "table", "inet", names.PolicyTable).CombinedOutput() })
	return string(out)
}

// expect checks TCP and UDP over IPv4 and IPv6 alike.
func (l *lab) expect(from, to *labPod, port int, want bool) {
	l.t.Helper()
	for _, addr := range to.Addresses {
		for _, network := range []string{"tcp", "udp"} {
			if got := from.reach(network, addr, port); got != want {
				l.t.Errorf("%s to %s at %s port %d by %s: reached %t, want %t\n%s", from.Name, to.Name, addr, port, network, got, want, l.rules())
			}
		}
	}
}

func tiers(p ...policy.Policy) []policy.Tier {
	return []policy.Tier{{Name: "default", Policies: p}}
}

func networkPolicy(name string, rules ...policy.Rule) policy.Policy {
	return policy.Policy{Ref: policy.Ref{Kind: "NetworkPolicy", Namespace: "default", Name: name}, Rules: rules}
}

func TestKernelPolicy(t *testing.T) {
	l := newLab(t)
	client, other, server := l.pod("client"), l.pod("other"), l.pod("server")
	server.serve(t, 80)
	server.serve(t, 81)
	open := &policy.Set{ID: "open", DefaultAction: policy.Allow}
	l.add(client, open)
	l.add(other, open)

	t.Run("no policy, everything passes", func(t *testing.T) {
		l.t = t
		l.add(server, open)
		l.expect(client, server, 80, true)
	})
	t.Run("the zero set denies", func(t *testing.T) {
		l.t = t
		l.add(server, &policy.Set{})
		l.expect(client, server, 80, false)
	})
	t.Run("unknown policy denies, in both directions", func(t *testing.T) {
		l.t = t
		l.add(server, nil)
		l.expect(client, server, 80, false)
		l.add(server, open)
		l.add(client, nil)
		l.expect(client, server, 80, false)
		l.add(client, open)
	})
	only := &policy.Set{ID: "only-client", DefaultAction: policy.Allow, Ingress: tiers(networkPolicy("only-client", policy.Rule{
		Name: "ingress[0]", Action: policy.Allow,
		Peers: []policy.Peer{{PeerSet: "clients", PodSelector: &policy.Selector{}}},
		Ports: []policy.PortMatch{{Protocol: policy.TCP, Port: 80}, {Protocol: policy.UDP, Port: 80}},
	}))}
	t.Run("a peer set with no known members matches nothing", func(t *testing.T) {
		l.t = t
		l.add(server, only)
		l.expect(client, server, 80, false)
	})
	state := State{PeerSets: map[string][]Member{"clients": {{Addresses: client.Addresses}}}}
	t.Run("peers by address, ports by number", func(t *testing.T) {
		l.t = t
		l.apply(state)
		l.expect(client, server, 80, true)
		l.expect(client, server, 81, false)
		l.expect(other, server, 80, false)
	})
	t.Run("an address that leaves the set is denied at once, established flows too", func(t *testing.T) {
		l.t = t
		var conn net.Conn
		client.Do(func() {
			var err error
			if conn, err = net.Dial("tcp", netip.AddrPortFrom(server.Addresses[0], 80).String()); err != nil {
				t.Fatal(err)
			}
		})
		defer conn.Close()
		echo := func() bool {
			_ = conn.SetDeadline(time.Now().Add(patience))
			_, _ = conn.Write([]byte("hello"))
			buf := make([]byte, 5)
			_, err := io.ReadFull(conn, buf)
			return err == nil
		}
		if !echo() {
			t.Fatal("the connection does not work while it is allowed")
		}
		l.apply(State{PeerSets: map[string][]Member{"clients": {{Addresses: other.Addresses}}}})
		_ = echo() // may still read the echo of the first round's greeting
		if echo() {
			t.Error("an established connection outlived the policy that allowed it")
		}
		l.expect(client, server, 80, false)
		l.expect(other, server, 80, true)
	})
	t.Run("egress", func(t *testing.T) {
		l.t = t
		l.add(server, open)
		l.add(client, &policy.Set{ID: "egress", DefaultAction: policy.Allow, Egress: tiers(networkPolicy("egress", policy.Rule{
			Name: "egress[0]", Action: policy.Allow,
			Peers: []policy.Peer{{Networks: []policy.Network{
				{Prefix: netip.MustParsePrefix("10.1.0.0/16")}, {Prefix: netip.MustParsePrefix("fd00:1::/32")}}}},
			Ports: []policy.PortMatch{{Protocol: policy.TCP, Port: 70, EndPort: 80}, {Protocol: policy.UDP, Port: 80}},
		}))})
		l.expect(client, server, 80, true)
		l.expect(client, server, 81, false)
		l.add(client, open)
	})
	t.Run("network exceptions", func(t *testing.T) {
		l.t = t
		l.add(server, &policy.Set{ID: "except", DefaultAction: policy.Allow, Ingress: tiers(networkPolicy("except", policy.Rule{
			Action: policy.Allow, Peers: []policy.Peer{{Networks: []policy.Network{
				{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Except: []netip.Prefix{netip.PrefixFrom(other.Addresses[0], 32)}},
				{Prefix: netip.MustParsePrefix("::/0"), Except: []netip.Prefix{netip.PrefixFrom(other.Addresses[1], 128)}},
			}}}}))})
		l.expect(client, server, 80, true)
		l.expect(other, server, 80, false)
	})
	t.Run("a pod cannot borrow an address", func(t *testing.T) {
		l.t = t
		spoof := client.Addresses[0]
		other.Do(func() { _ = exec.Command("ip", "addr", "add", spoof.String()+"/32", "dev", "lo").Run() })
		var got bool
		other.Do(func() {
			d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: spoof.AsSlice()}}
			c, err := d.Dial("tcp", netip.AddrPortFrom(server.Addresses[0], 80).String())
			if got = err == nil; got {
				c.Close()
			}
		})
		if got {
			t.Error("a connection from another pod's address passed")
		}
	})
	t.Run("restart replaces without touching what is restored", func(t *testing.T) {
		l.t = t
		fw, err := New(Options{Log: slog.New(slog.NewTextHandler(io.Discard, nil)), NFT: inNS{l, nil}.open(), Kernel: kernelIn{l.node}})
		if err != nil {
			t.Fatal(err)
		}
		l.add(server, only)
		fw.Restore(client.Pod, other.Pod, server.Pod)
		l.fw = fw
		l.expect(client, server, 80, false) // the rules of before
		l.expect(other, server, 80, true)
		l.apply(state)
		l.expect(client, server, 80, true)
		l.expect(other, server, 80, false)
	})
	t.Run("removal leaves no reference behind", func(t *testing.T) {
		l.t = t
		for _, p := range l.pods {
			if err := l.fw.RemovePod(t.Context(), p.ContainerID); err != nil {
				t.Fatal(err)
			}
		}
		l.apply(State{})
		want := (&renderer{}).render(nil, &State{})
		if got := l.fw.current; len(got.chains) != len(want.chains) || len(got.sets) != len(want.sets) {
			t.Errorf("left: %d chains, %d sets; want %d and %d", len(got.chains), len(got.sets), len(want.chains), len(want.sets))
		}
	})
}

// TestKernelSidecar is the L4 projection for rules that packets can't decide.
func TestKernelSidecar(t *testing.T) {
	l := newLab(t)
	client, server := l.pod("client"), l.pod("server")
	server.serve(t, 80)
	server.serve(t, 81)
	open := &policy.Set{ID: "open", DefaultAction: policy.Allow}
	l.add(client, open)
	get := &policy.Set{ID: "get", DefaultAction: policy.Allow, Ingress: tiers(networkPolicy("get", policy.Rule{
		Action: policy.Allow, AnyPeer: true, Ports: []policy.PortMatch{{Protocol: policy.TCP, Port: 80}},
		HTTP: []policy.HTTPMatch{{Methods: []string{"GET"}}},
	}))}
	tcp := func(port int, want bool) {
		t.Helper()
		for _, a := range server.Addresses {
			if got := client.reach("tcp", a, port); got != want {
				t.Errorf("port %d at %s: reached %t, want %t\n%s", port, a, got, want, l.rules())
			}
		}
	}
	l.add(server, get)
	tcp(80, false) // nobody could tell a GET from a PUT
	server.Meshed = true
	l.add(server, get)
	tcp(80, true)  // the sidecar tells
	tcp(81, false) // no completion is allowed
	if client.reach("udp", server.Addresses[0], 80) {
		t.Error("UDP passed by an HTTP rule")
	}
	server.Capture.ExcludeInboundPorts = []uint16{80}
	l.add(server, get)
	tcp(80, false) // the sidecar does not see it
}

// TestKernelControlPlaneStaysReachable: a policy that denies everything must
// not cut its own subjects off from hearing that it is gone.
func TestKernelControlPlaneStaysReachable(t *testing.T) {
	l := newLab(t)
	service := netip.MustParseAddrPort("10.96.0.1:15012")
	fw, err := New(Options{Log: l.fw.log, NFT: l.fw.nft, Control: service})
	if err != nil {
		t.Fatal(err)
	}
	l.fw = fw
	client, control := l.pod("client"), l.pod("control")
	control.Namespace = names.Namespace
	control.serve(t, names.PortControl)
	control.serve(t, 80)
	l.node.Do(func() {
		rules := fmt.Sprintf("table ip nat { chain pre { type nat hook prerouting priority dstnat; ip daddr %s tcp dport %d dnat to %s:%d; }; }",
			service.Addr(), service.Port(), control.Addresses[0], names.PortControl)
		if out, err := exec.Command("nft", rules).CombinedOutput(); err != nil {
			t.Fatalf("nft: %v: %s", err, out)
		}
	})
	closed := &policy.Set{ID: "closed", Ingress: tiers(networkPolicy("deny-all")), Egress: tiers(networkPolicy("deny-all"))}
	l.add(client, closed)
	l.add(control, closed)
	if !client.reach("tcp", service.Addr(), int(service.Port())) {
		t.Errorf("the control plane's service is cut off\n%s", l.rules())
	}
	if client.reach("tcp", control.Addresses[0], 80) {
		t.Error("another port of the control plane's pod is open")
	}
	l.expect(control, client, 80, false)
}

// TestKernelLinkLocal: a pod's link-local address is no way around its egress
// policy to the node's own ports.
func TestKernelLinkLocal(t *testing.T) {
	l := newLab(t)
	free, closed := l.pod("free"), l.pod("closed")
	node := &labPod{NS: l.node}
	node.serve(t, 10250)
	l.add(free, &policy.Set{ID: "open", DefaultAction: policy.Allow})
	l.add(closed, &policy.Set{ID: "closed", DefaultAction: policy.Allow, Egress: tiers(networkPolicy("deny-all"))})
	gateway := func(p *labPod) (a netip.Addr) {
		p.Do(func() {
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				t.Fatal(err)
			}
			a = netip.MustParseAddr("fe80::1").WithZone(strconv.Itoa(link.Attrs().Index))
		})
		return a
	}
	// The link's own address takes a moment to be made.
	for deadline := time.Now().Add(10 * time.Second); !free.reach("tcp", gateway(free), 10250); {
		if time.Now().After(deadline) {
			t.Fatalf("a pod without policy does not reach its node over the link\n%s", l.rules())
		}
	}
	if !free.reach("udp", gateway(free), 10250) {
		t.Error("UDP of a pod without policy does not reach its node over the link")
	}
	// The other pod's link was made at the same time and has its address by now.
	for range 5 {
		for _, network := range []string{"tcp", "udp"} {
			if closed.reach(network, gateway(closed), 10250) {
				t.Fatalf("%s passed a policy that denies all egress\n%s", network, l.rules())
			}
		}
	}
}
