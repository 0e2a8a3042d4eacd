package firewall

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/hauberk-mesh/hauberk/policy"
)

// The node that docs/benchmarks.md speaks of: local pods, policies spread over
// them, and the pods of other nodes, each in several policies' peers.
const (
	benchPods    = 250
	benchRemotes = 20_000
	benchPeers   = 100 // members of each policy's peers
)

func benchRemote(i int) Member {
	return Member{Addresses: []netip.Addr{
		netip.AddrFrom4([4]byte{10, 200 + byte(i>>14), byte(i >> 7 & 127), byte(i & 127)}),
		netip.AddrFrom16([16]byte{0xfd, 0, 0, 200, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})}}
}

func benchPolicy(i int) policy.Policy {
	return networkPolicy(fmt.Sprint("policy-", i), policy.Rule{
		Name: "ingress[0]", Action: policy.Allow,
		Peers: []policy.Peer{{PeerSet: fmt.Sprintf("%032x", i), PodSelector: &policy.Selector{}}},
		Ports: []policy.PortMatch{{Protocol: policy.TCP, Port: 80}, {Protocol: policy.UDP, Port: 1, EndPort: 65535}},
	})
}

// benchState is a node under policies in all. Each local pod has a set of its own
// of those that select it.
func benchState(policies int) State {
	remotes := make([]Member, benchRemotes)
	for i := range remotes {
		remotes[i] = benchRemote(i)
	}
	s := State{PeerSets: map[string][]Member{policy.EveryWorkloadDigest(): remotes}}
	of := make([][]policy.Policy, benchPods)
	for i := range policies {
		p := benchPolicy(i)
		of[i%benchPods] = append(of[i%benchPods], p)
		first := i * 20 % benchRemotes
		s.PeerSets[p.Rules[0].Peers[0].PeerSet] = slices.Clone(remotes[first:min(first+benchPeers, benchRemotes)])
	}
	for i := range benchPods {
		set := &policy.Set{ID: fmt.Sprint("set-", i), DefaultAction: policy.Allow}
		if len(of[i]) > 0 {
			set.Ingress = tiers(of[i]...)
		}
		s.Pods = append(s.Pods, Pod{UID: fmt.Sprint("uid-", i), Namespace: "default", Name: fmt.Sprint("pod-", i), PolicySet: set,
			HostInterface: fmt.Sprint("cali", i),
			Addresses:     []netip.Addr{netip.AddrFrom4([4]byte{10, 100, byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0xfd, 0, 0, 100, 14: byte(i >> 8), 15: byte(i)})}})
	}
	return s
}

// cpu is the process's CPU time and that of the nft that it ran, in seconds.
func cpu(b *testing.B) float64 {
	sum := 0.0
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		for _, t := range []syscall.Timeval{u.Utime, u.Stime} {
			sum += float64(t.Sec) + float64(t.Usec)/1e6
		}
	}
	return sum
}

// slab is the kernel's memory for small objects, in bytes, of the whole machine.
func slab(b *testing.B) int {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		b.Fatal(err)
	}
	sum := 0
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && slices.Contains([]string{"SUnreclaim:", "VmallocUsed:", "Percpu:"}, f[0]) {
			n, _ := strconv.Atoi(f[1])
			sum += n << 10
		}
	}
	return sum
}

func mustApply(b *testing.B, l *lab, s State) {
	b.Helper()
	if err := l.fw.Apply(b.Context(), s); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkKernelColdLoad is the first transaction of an agent that starts.
func BenchmarkKernelColdLoad(b *testing.B) {
	l := newLab(b)
	s := benchState(1000)
	before, spent := slab(b), cpu(b)
	for b.Loop() {
		l.fw.current, l.fw.renderer = nil, renderer{}
		mustApply(b, l, s)
	}
	b.ReportMetric((cpu(b)-spent)*1e3/float64(b.N), "cpu-ms/op")
	b.ReportMetric(float64(slab(b)-before)/1e6, "kernel-MB")
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	b.ReportMetric(float64(m.HeapAlloc)/1e6, "heap-MB")
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &u); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(u.Maxrss)/1e3, "nft-MB")
	runtime.KeepAlive(l)
	runtime.KeepAlive(s)
}

// BenchmarkKernelChange is one pod's change, until the kernel has it, with the
// CPU time of the agent and of nft.
func BenchmarkKernelChange(b *testing.B) {
	l := newLab(b)
	s := benchState(1000)
	mustApply(b, l, s)
	// State is as the agent makes it: maps anew, values shared.
	next := func() State {
		n := State{Pods: slices.Clone(s.Pods), PeerSets: make(map[string][]Member, len(s.PeerSets))}
		for id, m := range s.PeerSets {
			n.PeerSets[id] = m
		}
		return n
	}
	run := func(name string, change func(i int, s *State)) {
		b.Run(name, func(b *testing.B) {
			spent := cpu(b)
			for i := 0; b.Loop(); i++ {
				n := next()
				change(i, &n)
				mustApply(b, l, n)
				s = n
			}
			b.ReportMetric((cpu(b)-spent)*1e3/float64(b.N), "cpu-ms/op")
		})
	}
	every := policy.EveryWorkloadDigest()
	moved := func(of []Member, i int) []Member {
		out := slices.Clone(of)
		out[50] = Member{Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 250, byte(i >> 8), byte(i)})}}
		return out
	}
	run("remote pod, 5 policies and all pods", func(i int, s *State) {
		for p := range 5 {
			id := fmt.Sprintf("%032x", p)
			s.PeerSets[id] = moved(s.PeerSets[id], i)
		}
		s.PeerSets[every] = moved(s.PeerSets[every], i)
	})
	run("local pod's policies", func(i int, s *State) {
		set := *s.Pods[7].PolicySet
		set.ID = fmt.Sprint("changed-", i)
		s.Pods[7].PolicySet = &set
	})
	last := s.Pods[benchPods-1]
	run("local pod comes or goes", func(i int, s *State) {
		if i%2 == 0 {
			s.Pods = s.Pods[:benchPods-1]
		} else {
			s.Pods = append(s.Pods[:benchPods-1:benchPods-1], last)
		}
	})
	run("nothing", func(int, *State) {})
}

// BenchmarkKernelForget is a look through tracked flows: 20 000 of allowed pods.
func BenchmarkKernelForget(b *testing.B) {
	l := newLab(b)
	client, server := l.pod("client"), l.pod("server")
	open := &policy.Set{ID: "open", DefaultAction: policy.Allow}
	l.add(client, open)
	l.add(server, open)
	flood(b, client, server.Addresses[0], 20_000)
	spent := cpu(b)
	for b.Loop() {
		l.fw.stale = true
		if err := l.fw.forget(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric((cpu(b)-spent)*1e3/float64(b.N), "cpu-ms/op")
}

// flood sends n datagrams to as many ports.
func flood(b *testing.B, from *labPod, to netip.Addr, n int) {
	fd := udpSocket(b, from)
	for i := range n {
		at := syscall.SockaddrInet4{Port: 1 + i, Addr: to.As4()}
		if err := syscall.Sendto(fd, []byte("data"), 0, &at); err != nil {
			b.Fatal(err)
		}
	}
}

func udpSocket(b *testing.B, p *labPod) int {
	b.Helper()
	var fd int
	var err error
	p.Do(func() { fd, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0) })
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = syscall.Close(fd) })
	return fd
}

// BenchmarkKernelPacket is what a packet costs from a pod's socket through the
// node to another pod's: the sender's CPU does all of it. The server's socket is
// full, so nobody else takes part.
func BenchmarkKernelPacket(b *testing.B) {
	for _, of := range []struct {
		name           string
		policies, each int // in all, and of the server
	}{
		{"no rules", 0, 0},
		{"10 policies, 1 of the pod", 10, 1},
		{"1000 policies, 1 of the pod", 1000, 1},
		{"10000 policies, 1 of the pod", 10000, 1},
		{"1000 policies, 4 of the pod", 1000, 4},
		{"10000 policies, 40 of the pod", 10000, 40},
	} {
		b.Run(of.name, func(b *testing.B) { benchPackets(b, of.policies, of.each) })
	}
}

func benchPackets(b *testing.B, policies, each int) {
	l := newLab(b)
	client, server := l.pod("client"), l.pod("server")
	// The packets get to where there is no answer to make of them.
	var sink net.PacketConn
	var err error
	server.Do(func() { sink, err = net.ListenPacket("udp4", "0.0.0.0:8000") })
	if err != nil {
		b.Fatal(err)
	}
	defer sink.Close()
	if policies > 0 {
		s := benchState(policies)
		var of []policy.Policy
		for i := range each {
			p := benchPolicy(policies - each + i)
			of = append(of, p)
		}
		// What allows the packet is the last of the pod's policies.
		last := of[each-1].Rules[0].Peers[0].PeerSet
		s.PeerSets[last] = append(slices.Clone(s.PeerSets[last]), Member{Addresses: client.Addresses})
		mustApply(b, l, s)
		l.add(client, &policy.Set{ID: "open", DefaultAction: policy.Allow})
		l.add(server, &policy.Set{ID: "server", DefaultAction: policy.Allow, Ingress: tiers(of...)})
	}
	fd := udpSocket(b, client)
	send := func(b *testing.B, port int) {
		at := syscall.SockaddrInet4{Port: port, Addr: server.Addresses[0].As4()}
		if err := syscall.Sendto(fd, []byte("data"), 0, &at); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("established", func(b *testing.B) {
		send(b, 8000)
		_, from, err := sink.ReadFrom(make([]byte, 9))
		if err == nil {
			_, err = sink.WriteTo([]byte("data"), from)
		}
		if err != nil {
			b.Fatal(err)
		}
		best(b, nil, func(int) { send(b, 8000) })
	})
	b.Run("replies", func(b *testing.B) {
		name, err := syscall.Getsockname(fd)
		if err != nil {
			b.Fatal(err)
		}
		raw, err := sink.(*net.UDPConn).SyscallConn()
		if err != nil {
			b.Fatal(err)
		}
		at := syscall.SockaddrInet4{Port: name.(*syscall.SockaddrInet4).Port, Addr: client.Addresses[0].As4()}
		err = raw.Control(func(fd uintptr) {
			best(b, nil, func(int) {
				if err := syscall.Sendto(int(fd), []byte("data"), 0, &at); err != nil {
					b.Fatal(err)
				}
			})
		})
		if err != nil {
			b.Fatal(err)
		}
	})
	b.Run("new", func(b *testing.B) {
		server.Do(func() { err = silence() })
		if err != nil {
			b.Fatal(err)
		}
		best(b, func() {
			if _, err := l.fw.kernel.Cut(func(*netlink.ConntrackFlow) bool { return true }); err != nil {
				b.Fatal(err)
			}
		}, func(i int) { send(b, 10_000+i) })
	})
}

// best reports the least time of a packet among rounds of many: who shares the
// machine only ever makes a round longer.
func best(b *testing.B, before func(), send func(i int)) {
	const round = 2000
	least := time.Duration(math.MaxInt64)
	for b.Loop() {
		if before != nil {
			before()
		}
		start := time.Now()
		for i := range round {
			send(i)
		}
		least = min(least, time.Since(start))
	}
	b.ReportMetric(float64(least.Nanoseconds())/round, "ns/packet")
	b.ReportMetric(0, "ns/op")
}

// silence keeps a namespace from answering by ICMP for ports that nobody has.
func silence() error {
	return errors.Join(os.WriteFile("/proc/sys/net/ipv4/icmp_ratemask", []byte("255"), 0),
		os.WriteFile("/proc/sys/net/ipv4/icmp_ratelimit", []byte("100000000"), 0))
}
