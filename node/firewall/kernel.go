package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	route "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hauberk-mesh/hauberk/internal/names"
)

// Kernel is what is asked of the kernel beside transactions.
type Kernel interface {
	// Cut deletes the flows of connection tracking for which f is true, and says how
	// many they were.
	Cut(f func(*route.ConntrackFlow) bool) (int, error)
	// Addresses is the node's own.
	Addresses() ([]netip.Addr, error)
	// Generation changes with each transaction of anybody.
	Generation() (uint32, error)
	// Contents is what our table has.
	Contents() (Contents, error)
}

// Contents is how much is in the table.
type Contents struct {
	Chains map[string]int // rules, and references by others
	Sets   map[string]int // elements, -1 where the kernel does not tell
}

// hostKernel is the kernel in the process's own network namespace.
type hostKernel struct{}

// matcher is a function as a filter of flows.
type matcher func(*route.ConntrackFlow) bool

// MatchConntrackFlow is called for each flow.
func (m matcher) MatchConntrackFlow(f *route.ConntrackFlow) bool { return m(f) }

// Cut implements Kernel.
func (hostKernel) Cut(f func(*route.ConntrackFlow) bool) (int, error) {
	h, err := route.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, fmt.Errorf("open a netfilter socket: %w", err)
	}
	defer h.Close()
	sum, errs := 0, []error(nil)
	for _, family := range []route.InetFamily{unix.AF_INET, unix.AF_INET6} {
		n, err := h.ConntrackDeleteFilters(route.ConntrackTable, family, matcher(f))
		sum += int(n)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return sum, fmt.Errorf("delete flows of connection tracking: %w (the kernel needs nf_conntrack_netlink)", err)
	}
	return sum, nil
}

// Addresses implements Kernel.
func (hostKernel) Addresses() ([]netip.Addr, error) {
	h, err := route.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a route socket: %w", err)
	}
	defer h.Close()
	list, err := h.AddrList(nil, route.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the node's own addresses: %w", err)
	}
	out := make([]netip.Addr, 0, len(list))
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			out = append(out, addr.Unmap())
		}
	}
	return out, nil
}

// Messages and attributes of nf_tables (linux/netfilter/nf_tables.h).
const (
	getChain      = 4
	getSet        = 10
	getGeneration = 16

	attrTable      = 1 // of a chain and of a set
	attrChainName  = 3
	attrChainUse   = 6
	attrSetName    = 2
	attrSetCount   = 20 // Linux 6.16
	attrGeneration = 1
)

// Generation implements Kernel.
func (hostKernel) Generation() (uint32, error) {
	var out uint32
	err := ask(getGeneration, unix.AF_UNSPEC, 0, func(d *netlink.AttributeDecoder) {
		for d.Next() {
			if d.Type() == attrGeneration {
				out = d.Uint32()
			}
		}
	})
	return out, err
}

// Contents implements Kernel.
func (hostKernel) Contents() (Contents, error) {
	c := Contents{Chains: map[string]int{}, Sets: map[string]int{}}
	const inet = 1 // NFPROTO_INET
	err := ask(getChain, inet, netlink.Dump, func(d *netlink.AttributeDecoder) {
		table, name, use := "", "", 0
		for d.Next() {
			switch d.Type() {
			case attrTable:
				table = d.String()
			case attrChainName:
				name = d.String()
			case attrChainUse:
				use = int(d.Uint32())
			}
		}
		if table == names.PolicyTable {
			c.Chains[name] = use
		}
	})
	if err != nil {
		return c, fmt.Errorf("list chains: %w", err)
	}
	err = ask(getSet, inet, netlink.Dump, func(d *netlink.AttributeDecoder) {
		table, name, count := "", "", -1
		for d.Next() {
			switch d.Type() {
			case attrTable:
				table = d.String()
			case attrSetName:
				name = d.String()
			case attrSetCount:
				count = int(d.Uint32())
			}
		}
		if table == names.PolicyTable {
			c.Sets[name] = count
		}
	})
	if err != nil {
		return c, fmt.Errorf("list sets: %w", err)
	}
	return c, nil
}

// ask sends one request to nf_tables and reads each answer's attributes.
func ask(message int, family byte, flags netlink.HeaderFlags, read func(*netlink.AttributeDecoder)) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("open a netfilter socket: %w", err)
	}
	defer c.Close()
	answers, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | message), Flags: netlink.Request | flags},
		Data:   []byte{family, unix.NFNETLINK_V0, 0, 0},
	})
	if err != nil {
		return fmt.Errorf("ask nf_tables: %w", err)
	}
	for _, a := range answers {
		if len(a.Data) < 4 {
			continue
		}
		d, err := netlink.NewAttributeDecoder(a.Data[4:])
		if err != nil {
			return fmt.Errorf("read what nf_tables answers: %w", err)
		}
		d.ByteOrder = binary.BigEndian
		read(d)
		if err := d.Err(); err != nil {
			return fmt.Errorf("read what nf_tables answers: %w", err)
		}
	}
	return nil
}
