package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/vishvananda/netlink"
	"sigs.k8s.io/knftables"
)

// guard programs "inet hauberk-tunnel": in strict mode pod traffic to another
// node's pods leaves by the tunnel or not at all, and what claims to come from
// another node's pods arrives by the tunnel or not at all; in any mode TCP
// learns the tunnel's MTU. It is there before there is a tunnel, and stays when
// the agent or the device dies.
//
// A pod that has gone leaves its address without a route of its own, and what is
// still sent to it would follow the default route, in the clear and often in a
// circle. TCP is answered with a reset, as a host answers for a port that is
// closed, so that clients turn to another pod at once; it comes from the pod's
// address and is led into the tunnel as the pod's own packets were. An ICMP error
// would come from the node, by the underlay, and quote what must not be seen.
// For the same reason nothing from pod to pod leaves by the underlay, whether or
// not the node that has the address is known to have a tunnel.
//
// A NodePort of another node is the exception: it is the node that the pod
// speaks to, and the node that hands on (DNAT); such packets arrive on the
// underlay.
func (t *Tunnel) guard(ctx context.Context) error {
	tx := t.nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	if t.state.Enabled {
		links, err := underlayLinks(t.name, t.state.Peers)
		if err != nil {
			return err
		}
		t.guardRules(tx, links)
	}
	text := tx.String()
	if text == t.guarded {
		return nil
	}
	if err := t.nft.Run(ctx, tx); err != nil {
		return err
	}
	t.guarded = text
	return nil
}

func (t *Tunnel) guardRules(tx *knftables.Transaction, underlay []string) {
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("Hauberk: pod traffic between nodes is encrypted")})
	var remote []netip.Prefix
	for _, p := range t.state.Peers {
		remote = append(remote, p.AllowedIPs...)
	}
	sets := []struct {
		name     string
		prefixes []netip.Prefix
	}{{"pods", t.state.PodCIDRs}, {"local", t.state.Local}, {"remote", remote}}
	for _, set := range sets {
		name, in := set.name, set.prefixes
		four, six := split(in)
		for _, s := range []struct {
			name, kind string
			prefixes   []netip.Prefix
		}{{name + "4", "ipv4_addr", four}, {name + "6", "ipv6_addr", six}} {
			tx.Add(&knftables.Set{Name: s.name, Type: s.kind, Flags: []knftables.SetFlag{knftables.IntervalFlag}})
			for _, p := range s.prefixes {
				tx.Add(&knftables.Element{Set: s.name, Key: []string{p.String()}})
			}
		}
	}
	tx.Add(&knftables.Chain{Name: "forward", Type: knftables.PtrTo(knftables.FilterType),
		Hook: knftables.PtrTo(knftables.ForwardHook), Priority: knftables.PtrTo(knftables.BaseChainPriority("-6"))})
	add := func(format string, args ...any) {
		tx.Add(&knftables.Rule{Chain: "forward", Rule: fmt.Sprintf(format, args...)})
	}
	tx.Add(&knftables.Set{Name: "underlay", Type: "ifname"})
	for _, link := range underlay {
		tx.Add(&knftables.Element{Set: "underlay", Key: []string{strconv.Quote(link)}})
	}
	if t.state.Strict {
		for _, f := range []struct{ ip, version string }{{"ip", "4"}, {"ip6", "6"}} {
			add(`%s saddr @pods%s %s daddr @remote%s oifname != %q counter drop`, f.ip, f.version, f.ip, f.version, t.name)
			add(`%s saddr @pods%s %s daddr @local%s oifname @underlay meta l4proto tcp counter reject with tcp reset`, f.ip, f.version, f.ip, f.version)
			add(`%s saddr @pods%s %s daddr @pods%s oifname @underlay counter drop`, f.ip, f.version, f.ip, f.version)
			add(`%s saddr @remote%s %s daddr @pods%s iifname != %q ct status & dnat == 0 counter drop`, f.ip, f.version, f.ip, f.version, t.name)
		}
	}
	add(`oifname %q tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu`, t.name)
}

func split(in []netip.Prefix) (four, six []netip.Prefix) {
	set := map[netip.Prefix]bool{}
	for _, p := range in {
		set[p.Masked()] = true
	}
	// Interval sets refuse overlaps: a prefix inside another one is dropped.
	for _, p := range sortedPrefixes(set) {
		inside := false
		for q := range set {
			inside = inside || q != p && q.Bits() <= p.Bits() && q.Contains(p.Addr())
		}
		switch {
		case inside:
		case p.Addr().Is4():
			four = append(four, p)
		default:
			six = append(six, p)
		}
	}
	return four, six
}

// remove takes the tunnel away because it is disabled.
func (t *Tunnel) remove(ctx context.Context) error {
	if err := t.guard(ctx); err != nil {
		return err
	}
	link, err := netlink.LinkByName(t.name)
	if err == nil && link.Type() != "wireguard" {
		// The userspace device belongs to its own process, which would only make it
		// again: it stays, idle and without a way into it.
		if err := removeRoutes(); err != nil {
			return err
		}
		if err := netlink.LinkSetDown(link); err != nil {
			return fmt.Errorf("set %s down: %w", t.name, err)
		}
		return nil
	}
	return removeLink(t.name)
}

func removeLink(name string) error {
	if err := removeRoutes(); err != nil {
		return err
	}
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for link %s: %w", name, err)
	}
	if err := netlink.LinkDel(link); err != nil {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}

// Cleanup removes everything that the package ever makes on a node, for an
// uninstall. It succeeds when there is nothing.
func Cleanup(ctx context.Context, nft knftables.Interface) error {
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	return errors.Join(nft.Run(ctx, tx), removeLink(Interface))
}
