package firewall

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/hauberk-mesh/hauberk/policy"
)

// stream is a flow in which, once it is open, only the server sends.
type stream struct {
	name string
	got  atomic.Int64 // what reached the client
	sent atomic.Int64
}

// wait polls until ok, or fails.
func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// arrives reports whether something of the next n that the server sends does.
func (s *stream) arrives(t *testing.T, n int64) bool {
	got, sent := s.got.Load(), s.sent.Load()
	for deadline := time.Now().Add(20 * time.Second); s.sent.Load() <= sent+n; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("%s: the server does not send", s.name)
			return false
		}
	}
	return s.got.Load() > got
}

// flows reports whether the stream goes on. What was on its way when it was cut
// may still arrive.
func (s *stream) flows(t *testing.T) bool {
	for range 10 {
		if !s.arrives(t, 10) {
			return s.arrives(t, 60)
		}
	}
	return true
}

// expectStreams checks at once whether each goes on.
func expectStreams(t *testing.T, want bool, when string, streams ...*stream) {
	t.Helper()
	var all sync.WaitGroup
	got := make([]bool, len(streams))
	for i, s := range streams {
		all.Go(func() { got[i] = s.flows(t) })
	}
	all.Wait()
	for i, s := range streams {
		if got[i] != want {
			t.Errorf("%s: goes on %t %s, want %t", s.name, got[i], when, want)
		}
	}
}

// pump sends every 5 ms until the test ends.
func (s *stream) pump(t *testing.T, send func() error) {
	stop, ended := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(stop); <-ended })
	go func() {
		defer close(ended)
		for {
			_ = send() // a send that fails is one that does not arrive
			s.sent.Add(1)
			select {
			case <-time.After(5 * time.Millisecond):
			case <-stop:
				return
			}
		}
	}()
}

func (s *stream) count(read func([]byte) (int, error)) {
	buf := make([]byte, 1500)
	for {
		n, err := read(buf)
		if err != nil {
			return
		}
		if n > 0 {
			s.got.Add(1)
		}
	}
}

func udpStream(t *testing.T, client, server *labPod, to netip.Addr, port int) *stream {
	t.Helper()
	s := &stream{name: "UDP to " + to.String()}
	var l net.PacketConn
	var c net.Conn
	var err error
	server.Do(func() { l, err = net.ListenPacket("udp", netip.AddrPortFrom(to, uint16(port)).String()) })
	if err == nil {
		client.Do(func() { c, err = net.Dial("udp", l.LocalAddr().String()) })
	}
	if err == nil {
		_, err = io.WriteString(c, "go")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); c.Close() })
	_ = l.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, from, err := l.ReadFrom(make([]byte, 9))
	if err != nil {
		t.Fatal(err)
	}
	s.pump(t, func() error { _, err := l.WriteTo([]byte("data"), from); return err })
	go s.count(c.Read)
	return s
}

func tcpStream(t *testing.T, client, server *labPod, to netip.Addr, port int) *stream {
	t.Helper()
	s := &stream{name: "TCP to " + to.String()}
	var l net.Listener
	var c net.Conn
	var err error
	server.Do(func() { l, err = net.Listen("tcp", netip.AddrPortFrom(to, uint16(port)).String()) })
	if err == nil {
		client.Do(func() { c, err = net.DialTimeout("tcp", l.Addr().String(), 10*time.Second) })
	}
	if err != nil {
		t.Fatal(err)
	}
	at, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); c.Close(); at.Close() })
	s.pump(t, func() error {
		_ = at.SetWriteDeadline(time.Now().Add(time.Millisecond))
		_, err := at.Write([]byte("data"))
		return err
	})
	go s.count(c.Read)
	return s
}

// icmpStream is one echo request and answers without end.
func icmpStream(t *testing.T, client, server *labPod, to netip.Addr) *stream {
	t.Helper()
	s := &stream{name: "ICMP to " + to.String()}
	network, any, proto := "ip4:icmp", "0.0.0.0", 1
	var ask, answer icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	if to.Is6() {
		network, any, proto = "ip6:ipv6-icmp", "::", 58
		ask, answer = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	var at, c *icmp.PacketConn
	var err error
	server.Do(func() { at, err = icmp.ListenPacket(network, any) })
	if err == nil {
		client.Do(func() { c, err = icmp.ListenPacket(network, any) })
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { at.Close(); c.Close() })
	const id = 4711
	ping, err := (&icmp.Message{Type: ask, Body: &icmp.Echo{ID: id, Seq: 1}}).Marshal(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteTo(ping, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		t.Fatal(err)
	}
	peer := client.Addresses[0]
	if to.Is6() {
		peer = client.Addresses[1]
	}
	pong, err := (&icmp.Message{Type: answer, Body: &icmp.Echo{ID: id, Seq: 1}}).Marshal(nil)
	if err != nil {
		t.Fatal(err)
	}
	s.pump(t, func() error { _, err := at.WriteTo(pong, &net.IPAddr{IP: peer.AsSlice()}); return err })
	go s.count(func(b []byte) (int, error) {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return 0, err
		}
		if from.String() != to.String() { // the socket hears all of the pod's ICMP
			return 0, nil
		}
		if m, err := icmp.ParseMessage(proto, b[:n]); err != nil || m.Type != answer {
			return 0, nil
		}
		return n, nil
	})
	return s
}

// streams opens flows of every protocol over IPv4 and IPv6.
func streams(t *testing.T, client, server *labPod, port int) []*stream {
	t.Helper()
	var out []*stream
	for _, a := range server.Addresses {
		out = append(out, udpStream(t, client, server, a, port), tcpStream(t, client, server, a, port+1), icmpStream(t, client, server, a))
	}
	for _, s := range out {
		wait(t, s.name+": open", func() bool { return s.got.Load() > 3 })
	}
	return out
}

// onlyFrom is a set whose pods are reached by the members of a peer set alone.
func onlyFrom(peers string) *policy.Set {
	return &policy.Set{ID: "from-" + peers, DefaultAction: policy.Allow, Ingress: tiers(networkPolicy("from-"+peers, policy.Rule{
		Action: policy.Allow, Peers: []policy.Peer{{PeerSet: peers, PodSelector: &policy.Selector{}}}}))}
}

func closedTo(d policy.Direction) *policy.Set {
	s := &policy.Set{ID: fmt.Sprint("closed-", d), DefaultAction: policy.Allow}
	if d == policy.Ingress {
		s.Ingress = tiers(networkPolicy("deny-all"))
	} else {
		s.Egress = tiers(networkPolicy("deny-all"))
	}
	return s
}

// TestKernelCutsOneWayFlows: when policy does not allow a flow any more, what
// only its server sends stops as well; and what is still allowed goes on.
func TestKernelCutsOneWayFlows(t *testing.T) {
	open := &policy.Set{ID: "open", DefaultAction: policy.Allow}
	for _, tt := range []struct {
		name string
		cut  func(l *lab, client, server *labPod)
	}{
		{"ingress of the server", func(l *lab, _, server *labPod) { l.add(server, closedTo(policy.Ingress)) }},
		{"egress of the client", func(l *lab, client, _ *labPod) { l.add(client, closedTo(policy.Egress)) }},
		{"the client leaves the peers", func(l *lab, _, _ *labPod) {
			l.apply(State{PeerSets: map[string][]Member{"clients": {}}})
		}},
		{"the server's policy is not known", func(l *lab, _, server *labPod) { l.add(server, nil) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t)
			client, other, server := l.pod("client"), l.pod("other"), l.pod("server")
			l.add(client, open)
			l.add(other, open)
			l.apply(State{PeerSets: map[string][]Member{"clients": {{Addresses: client.Addresses}}}})
			l.add(server, onlyFrom("clients"))
			cut, kept := streams(t, client, server, 8000), streams(t, client, other, 8000)
			// A change that does not concern them disturbs no flow.
			l.apply(State{PeerSets: map[string][]Member{"clients": {{Addresses: slices.Concat(client.Addresses, other.Addresses)}}}})
			if err := l.fw.forget(); err != nil {
				t.Fatal(err)
			}
			expectStreams(t, true, "after a change that does not concern it", cut...)
			tt.cut(l, client, server)
			expectStreams(t, false, "after the change", cut...)
			if err := l.fw.forget(); err != nil {
				t.Fatal(err)
			}
			expectStreams(t, false, "after it was forgotten", cut...)
			if flows := l.tracked(t, server.Addresses); slices.ContainsFunc(flows, func(f *netlink.ConntrackFlow) bool {
				return f.Forward.Protocol == 6 && f.Forward.DstPort == 8001
			}) {
				t.Errorf("a TCP connection that is not allowed is still tracked: %v", flows)
			}
			expectStreams(t, tt.name != "egress of the client", "to another pod", kept...)
		})
	}
}

// tracked is the flows of some addresses that the kernel tracks.
func (l *lab) tracked(t *testing.T, addrs []netip.Addr) (out []*netlink.ConntrackFlow) {
	t.Helper()
	_, err := l.fw.kernel.Cut(func(f *netlink.ConntrackFlow) bool {
		for _, ip := range []net.IP{f.Forward.SrcIP, f.Forward.DstIP} {
			if a, ok := netip.AddrFromSlice(ip); ok && slices.Contains(addrs, a.Unmap()) {
				out = append(out, f)
			}
		}
		return false
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestKernelConnectionToNodeIsCut: a pod's flows to its own node are cut in both
// directions too, and the node's own to the pod never.
func TestKernelConnectionToNodeIsCut(t *testing.T) {
	l := newLab(t)
	client := l.pod("client")
	open := &policy.Set{ID: "open", DefaultAction: policy.Allow}
	l.add(client, open)
	gateway := netip.MustParseAddr("192.0.2.1")
	l.node.Do(func() {
		if out, err := exec.Command("ip", "addr", "add", gateway.String()+"/32", "dev", "lo").CombinedOutput(); err != nil {
			t.Errorf("ip: %v: %s", err, out)
		}
	})
	node := &labPod{NS: l.node, Pod: Pod{Addresses: []netip.Addr{gateway}}}
	cut := []*stream{udpStream(t, client, node, gateway, 8000), tcpStream(t, client, node, gateway, 8001)}
	kept := []*stream{udpStream(t, node, client, client.Addresses[0], 8000), tcpStream(t, node, client, client.Addresses[0], 8001)}
	for _, s := range slices.Concat(cut, kept) {
		wait(t, s.name+": open", func() bool { return s.got.Load() > 3 })
	}
	closed := closedTo(policy.Egress)
	closed.Ingress = tiers(networkPolicy("deny-all"))
	l.add(client, closed)
	for range 2 {
		expectStreams(t, false, "to the node", cut...)
		expectStreams(t, true, "from the node", kept...)
		if err := l.fw.forget(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKernelForgetsDepartedPods: nothing of a pod's flows is left for who gets
// its address, and nothing of others' is touched.
func TestKernelForgetsDepartedPods(t *testing.T) {
	l := newLab(t)
	client, server, other := l.pod("client"), l.pod("server"), l.pod("other")
	open := &policy.Set{ID: "open", DefaultAction: policy.Allow}
	for _, p := range []*labPod{client, server, other} {
		l.add(p, open)
	}
	streams(t, client, server, 8000)
	kept := streams(t, client, other, 8000)
	if len(l.tracked(t, server.Addresses)) < 4 {
		t.Fatalf("tracked: %v", l.tracked(t, server.Addresses))
	}
	server.Do(func() { // it goes: nothing of it makes flows anew
		if out, err := exec.Command("ip", "link", "set", "eth0", "down").CombinedOutput(); err != nil {
			t.Errorf("ip: %v: %s", err, out)
		}
	})
	if err := l.fw.RemovePod(t.Context(), "server"); err != nil {
		t.Fatal(err)
	}
	before := len(l.tracked(t, other.Addresses))
	if err := l.fw.forget(); err != nil {
		t.Fatal(err)
	}
	if left := l.tracked(t, server.Addresses); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if after := len(l.tracked(t, other.Addresses)); after < before {
		t.Errorf("of another pod's %d flows %d are left", before, after)
	}
	expectStreams(t, true, "to another pod", kept...)
}

// TestKernelConnectionInTheMiddle: a TCP connection that the kernel has
// forgotten lives on only when it is allowed whoever opened it.
func TestKernelConnectionInTheMiddle(t *testing.T) {
	l := newLab(t)
	client, server := l.pod("client"), l.pod("server")
	open := &policy.Set{ID: "open", DefaultAction: policy.Allow}
	l.add(client, open)
	l.add(server, open)
	s := tcpStream(t, client, server, server.Addresses[0], 8001)
	wait(t, "open", func() bool { return s.got.Load() > 3 })
	flush := func() {
		t.Helper()
		if _, err := l.fw.kernel.Cut(func(*netlink.ConntrackFlow) bool { return true }); err != nil {
			t.Fatal(err)
		}
	}
	flush()
	if !s.flows(t) {
		t.Error("a connection that nothing restricts ended when the kernel forgot it")
	}
	l.add(server, closedTo(policy.Ingress))
	for range 3 {
		flush()
		if s.flows(t) {
			t.Fatalf("a connection that was cut came back in the name of its server\n%s", l.rules())
		}
	}
}

// TestKernelLeavesMarksAlone: what others write on packets and flows, such as
// kube-proxy's 0x4000 and 0x8000, stays.
func TestKernelLeavesMarksAlone(t *testing.T) {
	l := newLab(t)
	client, server := l.pod("client"), l.pod("server")
	l.apply(State{PeerSets: map[string][]Member{"clients": {{Addresses: client.Addresses}}}})
	l.add(client, &policy.Set{ID: "open", DefaultAction: policy.Allow})
	l.add(server, onlyFrom("clients"))
	l.node.Do(func() {
		rules := `table inet others {
  chain before { type filter hook prerouting priority -150; meta mark set 0x4000 ct mark set 0x8000; }
  chain after { type filter hook forward priority 10; meta mark 0x4000 ct mark 0x8000 counter accept; counter drop; }
}`
		if out, err := exec.Command("nft", rules).CombinedOutput(); err != nil {
			t.Fatalf("nft: %v: %s", err, out)
		}
	})
	expectStreams(t, true, "with its marks", streams(t, client, server, 8000)...)
	for _, f := range l.tracked(t, server.Addresses) {
		if f.Mark != 0x8000 {
			t.Errorf("mark %#x of %s", f.Mark, f)
		}
	}
	if text := l.rules(); strings.Contains(text, "mark") {
		t.Errorf("the table speaks of marks:\n%s", text)
	}
}

// TestKernelCutThroughService: the same where the client dials a translated
// address.
func TestKernelCutThroughService(t *testing.T) {
	l := newLab(t)
	client, server := l.pod("client"), l.pod("server")
	service := netip.MustParseAddrPort("10.96.0.9:53")
	l.node.Do(func() {
		rules := fmt.Sprintf("table ip nat { chain pre { type nat hook prerouting priority dstnat; ip daddr %s udp dport 53 dnat to %s:8000; }; }",
			service.Addr(), server.Addresses[0])
		if out, err := exec.Command("nft", rules).CombinedOutput(); err != nil {
			t.Fatalf("nft: %v: %s", err, out)
		}
	})
	l.add(client, &policy.Set{ID: "open", DefaultAction: policy.Allow})
	l.apply(State{PeerSets: map[string][]Member{"clients": {{Addresses: client.Addresses}}}})
	l.add(server, onlyFrom("clients"))
	var at net.PacketConn
	var c net.Conn
	var err error
	server.Do(func() { at, err = net.ListenPacket("udp", "0.0.0.0:8000") })
	if err == nil {
		client.Do(func() { c, err = net.Dial("udp", service.String()) })
	}
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	defer c.Close()
	_, _ = c.Write(binary.BigEndian.AppendUint32(nil, 1))
	_ = at.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, from, err := at.ReadFrom(make([]byte, 9))
	if err != nil {
		t.Fatal(err)
	}
	s := &stream{name: "UDP through a service"}
	s.pump(t, func() error { _, err := at.WriteTo([]byte("data"), from); return err })
	go s.count(c.Read)
	wait(t, "open", func() bool { return s.got.Load() > 3 })
	l.add(server, onlyFrom("nobody"))
	for range 2 {
		if s.flows(t) {
			t.Fatalf("goes on\n%s", l.rules())
		}
		if err := l.fw.forget(); err != nil {
			t.Fatal(err)
		}
	}
}
