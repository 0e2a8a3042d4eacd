package firewall

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/hauberk-mesh/hauberk/policy"
)

// keepInterval is between looks at whether the table is still as it should be,
// and between rounds of forgetting flows.
const keepInterval = time.Second

// forgetShare is how many times as long as a look through all tracked flows takes
// the next one waits: where many flows meet many changes, this bounds the cost.
// Nothing but the record of flows that are cut already waits for it.
const forgetShare = 10

// Run keeps the kernel as it should be until ctx ends: it mends a table that
// somebody else changed, and makes the kernel forget flows that policy does not
// allow any more or whose pods are gone.
func (f *Firewall) Run(ctx context.Context) error {
	ticker := time.NewTicker(keepInterval)
	defer ticker.Stop()
	var said [2]string
	say := func(i int, what string, err error) {
		if err != nil && ctx.Err() == nil && said[i] != err.Error() {
			said[i] = err.Error()
			f.log.Warn(what, "error", err)
		}
	}
	var rest time.Time
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
		say(0, "the kernel's table is not as it should be", f.mend(ctx))
		if start := time.Now(); start.After(rest) {
			say(1, "flows that ended are not forgotten yet", f.forget())
			rest = time.Now().Add(forgetShare * time.Since(start))
		}
	}
}

// became notes what the kernel has now; mu is held.
func (f *Firewall) became(t *table, changed bool) {
	f.current = t
	if !changed {
		return
	}
	now := make(map[netip.Addr]bool)
	for _, name := range []string{setSelf4, setSelf6} {
		for key := range t.sets[name].keys {
			text, _, _ := strings.Cut(key, " ")
			a := netip.MustParseAddr(text)
			now[a] = true
			delete(f.departed, a)
		}
	}
	for a := range f.owned {
		if !now[a] {
			f.departed[a] = true
		}
	}
	f.owned, f.stale = now, true
}

// forget deletes flows from the kernel's connection tracking: those of
// addresses that no pod of the node has any more, and those that policy does not
// allow. They are cut already: the rules judge every packet. Nothing is left
// behind for who gets the address next, for errors about the flow, or for
// translations that would outlive it.
func (f *Firewall) forget() error {
	f.mu.Lock()
	t, stale := f.current, f.stale && f.current != nil
	f.stale = f.stale && !stale
	f.mu.Unlock()
	if !stale {
		return nil
	}
	err := f.forgetUnder(t)
	if err != nil {
		f.mu.Lock()
		f.stale = true
		f.mu.Unlock()
	}
	return err
}

func (f *Firewall) forgetUnder(t *table) error {
	own, err := f.kernel.Addresses()
	if err != nil {
		return err
	}
	node := make(map[netip.Addr]bool, len(own))
	for _, a := range own {
		node[a] = true
	}
	gone := f.gone()
	n, err := f.kernel.Cut(func(c *netlink.ConntrackFlow) bool {
		return f.isGone(gone, c) || f.denied(t, c, node)
	})
	if n > 0 {
		f.log.Info("the kernel forgot flows that policy or their pods' end cut", "flows", n)
	}
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for a := range gone {
		delete(f.departed, a)
	}
	return nil
}

// gone is a copy of the addresses that no pod has any more.
func (f *Firewall) gone() map[netip.Addr]bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make(map[netip.Addr]bool, len(f.departed))
	for a := range f.departed {
		out[a] = true
	}
	return out
}

// isGone reports whether one end of a flow is an address that no pod has any
// more. A pod may get it meanwhile.
func (f *Firewall) isGone(gone map[netip.Addr]bool, c *netlink.ConntrackFlow) bool {
	if len(gone) == 0 {
		return false
	}
	for _, ip := range [][]byte{c.Forward.SrcIP, c.Forward.DstIP, c.Reverse.SrcIP, c.Reverse.DstIP} {
		a, _ := netip.AddrFromSlice(ip)
		if gone[a.Unmap()] {
			f.mu.Lock()
			still := f.departed[a.Unmap()]
			f.mu.Unlock()
			return still
		}
	}
	return false
}

// denied reports whether a flow is to be forgotten because policy denies it.
//
// Forgetting makes the next packet the first of a flow. A datagram of the server
// would then open one of its own, in which the client's are replies: as long as
// the server may send by itself, only remembering the flow keeps it cut. TCP
// can't begin in the middle unless it is allowed both ways.
func (f *Firewall) denied(t *table, c *netlink.ConntrackFlow, node map[netip.Addr]bool) bool {
	client, _ := netip.AddrFromSlice(c.Forward.SrcIP)
	server, _ := netip.AddrFromSlice(c.Reverse.SrcIP)
	asked, _ := netip.AddrFromSlice(c.Forward.DstIP)
	client, server, asked = client.Unmap(), server.Unmap(), asked.Unmap()
	proto := policy.Protocol(c.Forward.Protocol)
	switch {
	case proto != policy.TCP && proto != policy.UDP && proto != policy.SCTP:
		return false // ICMP's do not last
	case !client.IsValid() || !server.IsValid():
		return false
	case proto == policy.TCP && netip.AddrPortFrom(asked, c.Forward.DstPort) == f.renderer.control:
		return false
	case t.allows(&packet{src: client, dst: server, proto: proto, port: c.Reverse.SrcPort}, node[client]):
		return false
	}
	return proto == policy.TCP || !t.allows(&packet{src: server, dst: client, proto: proto, port: c.Forward.SrcPort}, node[server])
}

// mend replaces the table when it is not what the last transaction left.
func (f *Firewall) mend(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.current == nil {
		return nil
	}
	generation, err := f.kernel.Generation()
	if err != nil {
		return err
	}
	if f.checked == generation {
		return nil
	}
	has, err := f.kernel.Contents()
	if err != nil {
		return err
	}
	if f.shapeOf != f.current {
		f.shape, f.shapeOf = f.current.contents(), f.current
	}
	if what := f.shape.differs(has); what != "" {
		f.log.Error("somebody changed the kernel's policy; replacing all of it", "what", what)
		f.current = nil
		if err := f.sync(ctx); err != nil {
			return fmt.Errorf("replace the kernel's policy: %w", err)
		}
		return nil // looked at again next time
	}
	f.checked = generation
	return nil
}

// contents is how much the kernel has of a table.
func (t *table) contents() Contents {
	c := Contents{Chains: make(map[string]int, len(t.chains)), Sets: make(map[string]int, len(t.sets))}
	for name, chain := range t.chains {
		lines := chain.lines(t.logs)
		c.Chains[name] += len(lines)
		for _, l := range lines {
			words := strings.Fields(l.text)
			if n := len(words); n > 1 && (words[n-2] == "goto" || words[n-2] == "jump") {
				c.Chains[words[n-1]]++
			}
		}
	}
	for name, m := range t.maps {
		c.Sets[name] = len(m.values)
		for _, v := range m.values {
			c.Chains[strings.TrimPrefix(v, "jump ")]++
		}
	}
	for name, s := range t.sets {
		c.Sets[name] = s.len()
		if s.prefixes != nil {
			c.Sets[name] = -1 // intervals are kept as their ends
		}
	}
	return c
}

// differs says what the kernel has otherwise, in words; empty when nothing is.
func (c Contents) differs(has Contents) string {
	for _, name := range sortedKeys(c.Chains) {
		if n, ok := has.Chains[name]; !ok || n != c.Chains[name] {
			return fmt.Sprintf("chain %s: %d rules and references, should be %d", name, n, c.Chains[name])
		}
	}
	for _, name := range sortedKeys(c.Sets) {
		n, ok := has.Sets[name]
		if !ok || n >= 0 && c.Sets[name] >= 0 && n != c.Sets[name] {
			return fmt.Sprintf("set %s: %d elements, should be %d", name, n, c.Sets[name])
		}
	}
	if len(has.Chains) != len(c.Chains) {
		return fmt.Sprintf("%d chains, should be %d", len(has.Chains), len(c.Chains))
	}
	return ""
}
