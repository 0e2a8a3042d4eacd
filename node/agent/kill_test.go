package agent_test

import (
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hauberk-mesh/hauberk/node/redirect"
	"github.com/hauberk-mesh/hauberk/policy"
)

// kills is how often the agent is killed.
const kills = 100

// datagrams is a stream of datagrams, a hundred a second.
type datagrams struct{ sent, got atomic.Int64 }

// send streams from one pod to a port of another until the test ends.
func (m *machine) send(from, to *pod, port int) *datagrams {
	m.t.Helper()
	d := &datagrams{}
	var at net.PacketConn
	var c net.Conn
	for _, f := range []struct {
		in   *pod
		open func() error
	}{
		{to, func() (err error) { at, err = net.ListenUDP("udp4", &net.UDPAddr{Port: port}); return err }},
		{from, func() (err error) {
			c, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.addr, uint16(port))))
			return err
		}},
	} {
		if err := redirect.Enter(f.in.Path, f.open); err != nil {
			m.t.Fatal(err)
		}
	}
	stop, sent, got := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(got)
		for buf := make([]byte, 9); ; {
			if _, _, err := at.ReadFrom(buf); err != nil {
				return
			}
			d.got.Add(1)
		}
	}()
	go func() {
		defer close(sent)
		ticker := time.NewTicker(10 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				if _, err := c.Write([]byte("data")); err == nil {
					d.sent.Add(1)
				}
			case <-stop:
				return
			}
		}
	}()
	m.t.Cleanup(func() { close(stop); <-sent; c.Close(); at.Close(); <-got })
	return d
}

// TestKilledAgainAndAgain: kill -9 at every stage of the agent's life, from its
// first instructions to in the middle of programming, opens nothing and cuts
// nothing.
func TestKilledAgainAndAgain(t *testing.T) {
	m := newMachine(t)
	m.trust()
	m.control.serve(m.listen())
	m.tellMesh()
	m.tellPolicy("open", policy.Allow)
	m.tellPolicy("closed", policy.Deny)
	m.tellWorkload("client", "open", false)
	m.tellWorkload("database", "closed", false)
	m.tellWorkload("shop", "open", false)
	end := m.start()
	m.eventually("ready", m.ready)
	var pods []*pod
	for _, name := range []string{"client", "database", "shop"} {
		p, err := m.newPod("bank", name)
		if err != nil {
			t.Fatal(err)
		}
		pods = append(pods, p)
	}
	denied, allowed := m.send(pods[0], pods[1], 53), m.send(pods[0], pods[2], 53)
	m.eventually("the allowed stream flows", func() bool { return allowed.got.Load() > 10 })
	started := time.Now()
	for i := range kills {
		// Every tenth has done all of its work, the others are caught at it.
		if i%10 == 0 {
			m.eventually("ready", m.ready)
		} else {
			time.Sleep(time.Duration(i*37%300) * time.Millisecond) // the moment is the test
		}
		end(syscall.SIGKILL)
		m.tellPolicy("other", []policy.Action{policy.Deny, policy.Allow}[i%2])
		end = m.start()
	}
	m.eventually("ready after the last", m.ready)
	t.Logf("%d kills in %s: %d datagrams denied, %d allowed", kills, time.Since(started).Round(time.Second), denied.sent.Load(), allowed.sent.Load())
	if n := denied.got.Load(); n > 0 {
		t.Errorf("%d of %d denied datagrams passed", n, denied.sent.Load())
	}
	if denied.sent.Load() < 1000 {
		t.Errorf("only %d denied datagrams were sent", denied.sent.Load())
	}
	sent := allowed.sent.Load()
	m.eventually("all allowed datagrams arrived", func() bool { return allowed.got.Load() >= sent })
	// And it still enforces what it is told.
	m.tellWorkload("database", "open", false)
	m.eventually("opened by policy", func() bool { return denied.got.Load() > 0 })
}
