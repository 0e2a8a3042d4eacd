package flows

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/hauberk-mesh/hauberk/internal/flow"
	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/node/firewall"
	"github.com/hauberk-mesh/hauberk/node/nettest"
	"github.com/hauberk-mesh/hauberk/policy"
)

// inNS runs nft in the node's namespace.
type inNS struct {
	knftables.Interface
	node *nettest.NS
}

func (i inNS) Run(ctx context.Context, tx *knftables.Transaction) (err error) {
	i.node.Do(func() { err = i.Interface.Run(ctx, tx) })
	return err
}

func (i inNS) Check(ctx context.Context, tx *knftables.Transaction) (err error) {
	i.node.Do(func() { err = i.Interface.Check(ctx, tx) })
	return err
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// lab is a node with two pods, its firewall and its reader.
type lab struct {
	node, client, server *nettest.NS
	fw                   *firewall.Firewall
	ring                 *flow.Ring
	reader               *Reader
}

const (
	client4, client6 = "10.1.0.1", "fd00:1::1"
	server4, server6 = "10.1.0.2", "fd00:1::2"
)

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{node: nettest.New(t), ring: flow.NewRing(1000, 0)}
	l.client = l.node.Attach("veth-client", client4, client6)
	l.server = l.node.Attach("veth-server", server4, server6)
	var nft knftables.Interface
	var err error
	l.node.Do(func() { nft, err = knftables.New(knftables.InetFamily, names.PolicyTable) })
	if err != nil {
		t.Fatal(err)
	}
	if l.fw, err = firewall.New(firewall.Options{Log: quiet(), NFT: inNS{nft, l.node}}); err != nil {
		t.Fatal(err)
	}
	who := map[string]flow.Endpoint{
		client4: {Namespace: "bank", Pod: "customer-1", Workload: "customer"}, client6: {Namespace: "bank", Pod: "customer-1", Workload: "customer"},
		server4: {Namespace: "bank", Pod: "database-0", Workload: "database"}, server6: {Namespace: "bank", Pod: "database-0", Workload: "database"},
	}
	l.reader, err = New(Options{Log: quiet(), Node: "node1", Ring: l.ring, Dropped: l.fw.Dropped,
		Who: func(a netip.Addr) flow.Endpoint { return who[a.String()] },
		Dial: func() (c *netlink.Conn, err error) {
			l.node.Do(func() { c, err = netlink.Dial(unix.NETLINK_NETFILTER, nil) })
			return c, err
		}})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *lab) pod(t *testing.T, name, v4, v6 string, set *policy.Set) {
	t.Helper()
	err := l.fw.AddPod(t.Context(), firewall.Pod{UID: name, Namespace: "bank", Name: name, ContainerID: name, HostInterface: "veth-" + name,
		Addresses: []netip.Addr{netip.MustParseAddr(v4), netip.MustParseAddr(v6)}, PolicySet: set})
	if err != nil {
		t.Fatal(err)
	}
}

// run starts the reader and waits until it listens.
func (l *lab) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.reader.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(10 * time.Second); l.reader.Problem() != ""; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it does not listen: %s", l.reader.Problem())
		}
	}
}

// await returns the first new record that is wanted.
func await(t *testing.T, s *flow.Subscription) flow.Record {
	t.Helper()
	select {
	case rec := <-s.Records():
		return rec
	case <-time.After(10 * time.Second):
		t.Fatal("the kernel told of no drop")
	}
	return flow.Record{}
}

func TestDropsOfTheKernel(t *testing.T) {
	l := newLab(t)
	open := &policy.Set{ID: "open", DefaultAction: policy.Allow}
	ref := policy.Ref{Kind: "NetworkPolicy", Namespace: "bank", Name: "database-policy"}
	closed := &policy.Set{ID: "closed", DefaultAction: policy.Allow, Ingress: []policy.Tier{
		{Name: "security", DefaultAction: policy.Pass, Policies: []policy.Policy{{
			Ref: policy.Ref{Kind: "ClusterMeshPolicy", Name: "no-etcd"},
			Rules: []policy.Rule{{Name: "etcd", Action: policy.Deny, AnyPeer: true,
				Ports: []policy.PortMatch{{Protocol: policy.TCP, Port: 2379}}}},
		}}},
		{Name: "default", Policies: []policy.Policy{{Ref: ref}}},
	}}
	l.pod(t, "client", client4, client6, open)
	l.pod(t, "server", server4, server6, closed)
	l.run(t)
	if p := l.fw.LogProblem(); p != "" {
		t.Fatal(p)
	}
	dial := func(network, address string) func() {
		return func() {
			c, err := net.DialTimeout(network, address, 50*time.Millisecond)
			if err == nil {
				_, _ = c.Write([]byte("hello"))
				c.Close()
			}
		}
	}
	ping := func(args ...string) func() {
		return func() { _ = exec.Command("ping", append([]string{"-c", "1", "-W", "1"}, args...)...).Run() }
	}
	silence := flow.Decision{Tier: "default", Selecting: []string{ref.String()}, Reason: policy.ReasonTierDefault}
	rule := flow.Decision{Tier: "security", Policy: "ClusterMeshPolicy no-etcd", Rule: "etcd", Reason: policy.ReasonRule}
	customer := flow.Endpoint{Namespace: "bank", Pod: "customer-1", Workload: "customer"}
	database := flow.Endpoint{Namespace: "bank", Pod: "database-0", Workload: "database"}
	at := func(e flow.Endpoint, a string) flow.Endpoint { e.Address = netip.MustParseAddr(a); return e }
	zero, echo4, echo6 := uint8(0), uint8(8), uint8(128)
	for _, tt := range []struct {
		name string
		send func()
		want flow.Record
	}{
		{"TCP over IPv4, denied by a rule", dial("tcp", server4+":2379"),
			flow.Record{Source: at(customer, client4), Destination: at(database, server4), Protocol: "TCP", Port: 2379, Decision: rule}},
		{"TCP over IPv6, denied by a rule", dial("tcp", "["+server6+"]:2379"),
			flow.Record{Source: at(customer, client6), Destination: at(database, server6), Protocol: "TCP", Port: 2379, Decision: rule}},
		{"UDP over IPv4, no rule matched", dial("udp", server4+":53"),
			flow.Record{Source: at(customer, client4), Destination: at(database, server4), Protocol: "UDP", Port: 53, Decision: silence}},
		{"UDP over IPv6, no rule matched", dial("udp", "["+server6+"]:53"),
			flow.Record{Source: at(customer, client6), Destination: at(database, server6), Protocol: "UDP", Port: 53, Decision: silence}},
		{"ICMP", ping(server4), flow.Record{Source: at(customer, client4), Destination: at(database, server4), Protocol: "ICMP",
			ICMPType: &echo4, ICMPCode: &zero, Decision: silence}},
		{"ICMPv6", ping("-6", server6), flow.Record{Source: at(customer, client6), Destination: at(database, server6), Protocol: "ICMPv6",
			ICMPType: &echo6, ICMPCode: &zero, Decision: silence}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if strings.HasPrefix(tt.name, "ICMP") {
				if _, err := exec.LookPath("ping"); err != nil {
					t.Skip("ICMP left out: there is no ping here")
				}
			}
			_, s := l.ring.Subscribe(flow.Filter{})
			defer s.Close()
			before := time.Now()
			l.client.Do(tt.send)
			got := await(t, s)
			if got.Time.Before(before.Add(-time.Second)) || got.Time.After(time.Now().Add(time.Second)) {
				t.Errorf("time %s, sent at %s", got.Time, before)
			}
			tt.want.Node, tt.want.Direction, tt.want.Verdict, tt.want.Layer = "node1", "Ingress", flow.Deny, flow.Kernel
			if d := cmp.Diff(tt.want, got, cmpopts.IgnoreFields(flow.Record{}, "Time"), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
				t.Errorf("record (-want +got):\n%s", d)
			}
		})
	}

	t.Run("a policy that is not known, from the client's side", func(t *testing.T) {
		l.pod(t, "client", client4, client6, nil)
		_, s := l.ring.Subscribe(flow.Filter{})
		defer s.Close()
		l.client.Do(dial("udp", server4+":53"))
		if got := await(t, s); got.Direction != "Egress" || got.Reason != policy.ReasonNoSet {
			t.Errorf("got %s, %q", got.Direction, got.Reason)
		}
		l.pod(t, "client", client4, client6, open)
	})
	t.Run("a reply of a flow that is not allowed any more", func(t *testing.T) {
		l.pod(t, "server", server4, server6, open)
		defer l.pod(t, "server", server4, server6, closed)
		var at net.PacketConn
		var c net.Conn
		var err error
		l.server.Do(func() { at, err = net.ListenPacket("udp", "["+server6+"]:53") })
		if err == nil {
			l.client.Do(func() { c, err = net.Dial("udp", "["+server6+"]:53") })
		}
		if err == nil {
			_, err = c.Write([]byte("hello"))
		}
		if err != nil {
			t.Fatal(err)
		}
		defer at.Close()
		defer c.Close()
		_ = at.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, from, err := at.ReadFrom(make([]byte, 9))
		if err != nil {
			t.Fatal(err)
		}
		l.pod(t, "server", server4, server6, closed)
		_, s := l.ring.Subscribe(flow.Filter{})
		defer s.Close()
		if _, err := at.WriteTo([]byte("hello"), from); err != nil {
			t.Fatal(err)
		}
		got := await(t, s)
		if got.Direction != "Ingress" || got.Source.Pod != "customer-1" || got.Destination.Pod != "database-0" || got.Port != 53 {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("an address that is not the pod's", func(t *testing.T) {
		_, s := l.ring.Subscribe(flow.Filter{})
		defer s.Close()
		l.client.Do(func() {
			_ = exec.Command("ip", "addr", "add", "192.0.2.7/32", "dev", "lo").Run()
			d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP("192.0.2.7")}}
			if c, err := d.Dial("udp", server4+":53"); err == nil {
				_, _ = c.Write([]byte("hello"))
				c.Close()
			}
		})
		if got := await(t, s); got.Direction != "Egress" || got.Source.Address.String() != "192.0.2.7" || !strings.Contains(got.Reason, "not the pod's own") {
			t.Errorf("got %s from %s: %q", got.Direction, got.Source.Address, got.Reason)
		}
	})
}

// TestFloodIsDroppedWholeAndToldInPart: the limit is on telling, never on
// dropping.
func TestFloodIsDroppedWholeAndToldInPart(t *testing.T) {
	l := newLab(t)
	open := &policy.Set{ID: "open", DefaultAction: policy.Allow}
	l.pod(t, "client", client4, client6, open)
	l.pod(t, "server", server4, server6, &policy.Set{ID: "closed", DefaultAction: policy.Allow,
		Ingress: []policy.Tier{{Name: "default", Policies: []policy.Policy{{Ref: policy.Ref{Kind: "NetworkPolicy", Namespace: "bank", Name: "all"}}}}}})
	l.run(t)
	var in net.PacketConn
	var err error
	l.server.Do(func() { in, err = net.ListenPacket("udp", server4+":53") })
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	const packets = 5000
	l.client.Do(func() {
		c, err := net.Dial("udp", server4+":53")
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		for range packets {
			_, _ = c.Write([]byte("x"))
		}
	})
	// The counter of the drop says that all went through the rules.
	var rules []byte
	l.node.Do(func() { rules, _ = exec.Command("nft", "list", "table", "inet", names.PolicyTable).Output() })
	if !strings.Contains(string(rules), "counter packets 5000 ") {
		t.Errorf("not all packets were dropped by the rule:\n%s", rules)
	}
	_ = in.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, _, err := in.ReadFrom(make([]byte, 10)); err == nil {
		t.Errorf("%d bytes of a denied flood arrived", n)
	}
	for deadline := time.Now().Add(10 * time.Second); l.ring.Added() < 100; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("only %d drops were told", l.ring.Added())
		}
	}
	if told := l.ring.Added(); told > packets/2 {
		t.Errorf("%d of %d drops were told: nothing limits them", told, packets)
	}
}

// TestListeningIsTriedAndSaid: two can't listen, and the second says so.
func TestListeningIsTriedAndSaid(t *testing.T) {
	l := newLab(t)
	l.run(t)
	second, err := New(l.reader.Options)
	if err != nil {
		t.Fatal(err)
	}
	err = second.listen(t.Context())
	if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "another program") {
		t.Errorf("the second listener got %v", err)
	}
	if second.Problem() == "" {
		t.Error("the second listener claims to listen")
	}
}
