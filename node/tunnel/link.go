package tunnel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ensureLink finds the device or makes it in the kernel. Where the kernel has
// no WireGuard the device is made by RunDevice, in its own process, and found
// here a moment later.
func ensureLink(name string) (backend string, err error) {
	link, err := netlink.LinkByName(name)
	if err == nil {
		if link.Type() == "wireguard" {
			return "kernel", nil
		}
		return "userspace", nil
	}
	if !errors.As(err, new(netlink.LinkNotFoundError)) {
		return "", fmt.Errorf("look for link %s: %w", name, err)
	}
	err = netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: name}})
	switch {
	case err == nil, errors.Is(err, unix.EEXIST):
		return "kernel", nil
	case errors.Is(err, unix.EOPNOTSUPP):
		return "", fmt.Errorf("link %s is not there yet: this kernel has no WireGuard, and the userspace device is not running", name)
	}
	return "", fmt.Errorf("make WireGuard link %s: %w", name, err)
}

// kernelHasWireGuard tries in the only way that is sure.
func kernelHasWireGuard() bool {
	const probe = "hauberk-wgprobe"
	link := &netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: probe}}
	if err := netlink.LinkAdd(link); err != nil {
		return errors.Is(err, unix.EEXIST)
	}
	_ = netlink.LinkDel(link)
	return true
}

// upLink sets the link's MTU by the underlay that leads to the peers, and up.
func upLink(name string, peers []Peer) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("look for link %s: %w", name, err)
	}
	if mtu := underlayMTU(peers) - overhead; link.Attrs().MTU != mtu {
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return nil, fmt.Errorf("set MTU %d of %s: %w", mtu, name, err)
		}
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(link); err != nil {
			return nil, fmt.Errorf("set %s up: %w", name, err)
		}
	}
	return link, nil
}

// underlayMTU is the least of the links that lead to peers; Ethernet's 1500
// when there is none.
func underlayMTU(peers []Peer) int {
	least := 0
	for _, p := range peers {
		if len(p.Endpoints) == 0 {
			continue
		}
		routes, err := netlink.RouteGet(p.Endpoints[0].Addr().Unmap().AsSlice())
		if err != nil || len(routes) == 0 {
			continue
		}
		mtu := routes[0].MTU
		if mtu == 0 {
			if link, err := netlink.LinkByIndex(routes[0].LinkIndex); err == nil {
				mtu = link.Attrs().MTU
			}
		}
		// IPv6 needs 1280 inside of the tunnel (RFC 8200 section 5).
		if mtu >= 1280+overhead && (least == 0 || mtu < least) {
			least = mtu
		}
	}
	if least == 0 {
		return 1500
	}
	return least
}

// underlayLinks are the names of the links that lead out of the node: those of
// default routes, and those that lead to peers.
func underlayLinks(tunnel string, peers []Peer) ([]string, error) {
	indexes := map[int]bool{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
		if err != nil {
			return nil, fmt.Errorf("list default routes: %w", err)
		}
		for _, r := range routes {
			indexes[r.LinkIndex] = true
			for _, hop := range r.MultiPath {
				indexes[hop.LinkIndex] = true
			}
		}
	}
	for _, p := range peers {
		for _, e := range p.Endpoints {
			routes, err := netlink.RouteGet(e.Addr().Unmap().AsSlice())
			if err != nil {
				continue // no way to it, and so none in the clear
			}
			for _, r := range routes {
				indexes[r.LinkIndex] = true
			}
		}
	}
	var names []string
	for index := range indexes {
		link, err := netlink.LinkByIndex(index)
		if err != nil || link.Attrs().Name == tunnel || link.Attrs().Flags&net.FlagLoopback != 0 {
			continue // gone since, or a way that does not lead out
		}
		names = append(names, link.Attrs().Name)
	}
	slices.Sort(names)
	return names, nil
}

func linkMTU(name string) int {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return 0
	}
	return link.Attrs().MTU
}

// syncRoutes makes the routing table lead to the peers' pods, and the rules
// lead what comes from pods to the table. The rules match sources, so that the
// kernel's reverse path check of what comes out of the tunnel agrees.
func syncRoutes(link netlink.Link, s State) error {
	want := map[netip.Prefix]bool{}
	for _, p := range s.Peers {
		for _, a := range p.AllowedIPs {
			want[a.Masked()] = true
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: Table}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return fmt.Errorf("list routes of table %d: %w", Table, err)
		}
		have := map[netip.Prefix]bool{}
		for _, r := range routes {
			if p, ok := prefixOf(r.Dst); ok && want[p] && r.LinkIndex == link.Attrs().Index {
				have[p] = true
				continue
			}
			if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("remove route to %s: %w", r.Dst, err)
			}
		}
		for _, p := range sortedPrefixes(want) {
			if have[p] || familyOf(p) != family {
				continue
			}
			route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(p), Table: Table, Scope: netlink.SCOPE_LINK}
			if err := netlink.RouteReplace(route); err != nil {
				return fmt.Errorf("add route to %s by %s: %w", p, link.Attrs().Name, err)
			}
		}
		if err := syncRules(family, s.PodCIDRs); err != nil {
			return err
		}
	}
	return nil
}

func syncRules(family int, sources []netip.Prefix) error {
	rules, err := netlink.RuleListFiltered(family, &netlink.Rule{Table: Table}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("list routing rules: %w", err)
	}
	want := map[netip.Prefix]bool{}
	for _, p := range sources {
		if familyOf(p) == family {
			want[p.Masked()] = true
		}
	}
	for _, r := range rules {
		if p, ok := prefixOf(r.Src); ok && want[p] && r.Priority == Table {
			delete(want, p)
			continue
		}
		if err := netlink.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove routing rule from %v: %w", r.Src, err)
		}
	}
	for _, p := range sortedPrefixes(want) {
		rule := netlink.NewRule()
		rule.Family, rule.Src, rule.Table, rule.Priority = family, ipNet(p), Table, Table
		if err := netlink.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add routing rule from %s: %w", p, err)
		}
	}
	return nil
}

// removeRoutes takes away the rules and then the routes.
func removeRoutes() error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if err := syncRules(family, nil); err != nil {
			return err
		}
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: Table}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return fmt.Errorf("list routes of table %d: %w", Table, err)
		}
		for _, r := range routes {
			if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("remove route to %s: %w", r.Dst, err)
			}
		}
	}
	return nil
}

func familyOf(p netip.Prefix) int {
	if p.Addr().Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

func sortedPrefixes(set map[netip.Prefix]bool) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(set))
	for p := range set {
		out = append(out, p)
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return out
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func ipNets(ps []netip.Prefix) []net.IPNet {
	out := make([]net.IPNet, 0, len(ps))
	for _, p := range ps {
		out = append(out, *ipNet(p.Masked()))
	}
	return out
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a.Unmap(), ones), true
}

func udpAddr(a netip.AddrPort) *net.UDPAddr {
	return net.UDPAddrFromAddrPort(netip.AddrPortFrom(a.Addr().Unmap(), a.Port()))
}

func sameNets(a, b []net.IPNet) bool {
	key := func(ns []net.IPNet) []string {
		out := make([]string, len(ns))
		for i := range ns {
			out[i] = ns[i].String()
		}
		slices.Sort(out)
		return out
	}
	return slices.Equal(key(a), key(b))
}
