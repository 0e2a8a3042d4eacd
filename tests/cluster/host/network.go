package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"

	"github.com/hauberk-mesh/hauberk/tests/cluster/plan"
)

// step is a list of commands for one network namespace; the empty space is
// the machine's own.
type step struct {
	space   string
	ip      []string // lines for ip -batch
	sysctls []string // name=value below /proc/sys/net
}

// networkSteps build the plan's network in order. The bridge lies in the
// control plane's namespace, so that no firewall rule and no bridge setting
// of the machine can touch what the nodes send to each other; the machine
// itself gets one link into it.
func networkSteps(c plan.Cluster) []step {
	m4, m6 := c.Machine()
	a4, a6 := c.API()
	six := func(lines ...string) []string {
		if c.DualStack {
			return lines
		}
		return nil
	}
	machine := step{ip: []string{
		fmt.Sprintf("link add %s type veth peer name machine netns %s", plan.HostLink, plan.NetPin(plan.ControlPlane)),
		fmt.Sprintf("addr add %s/24 dev %s", m4, plan.HostLink),
	}}
	machine.ip = append(machine.ip, six(fmt.Sprintf("addr add %s/64 dev %s nodad", m6, plan.HostLink))...)
	machine.ip = append(machine.ip, "link set "+plan.HostLink+" up")

	control := step{space: plan.ControlPlane, sysctls: routerSysctls(c)}
	control.ip = append(control.ip,
		"link set lo up",
		"link add fabric type bridge mcast_snooping 0",
		fmt.Sprintf("addr add %s/24 dev fabric", a4),
		"link set fabric up",
		"link set machine master fabric up")
	control.ip = append(control.ip, six(fmt.Sprintf("addr add %s/64 dev fabric nodad", a6))...)

	var nodes []step
	var via4, via6 []string
	for _, n := range c.Workers() {
		control.ip = append(control.ip,
			fmt.Sprintf("link add %s type veth peer name eth0 netns %s", n.Name, plan.NetPin(n.Name)),
			fmt.Sprintf("link set %s master fabric up", n.Name),
			fmt.Sprintf("route add %s via %s", n.Pods4, n.V4))
		control.ip = append(control.ip, six(fmt.Sprintf("route add %s via %s", n.Pods6, n.V6))...)
		via4 = append(via4, "nexthop via "+n.V4.String())
		via6 = append(via6, "nexthop via "+n.V6.String())
		nodes = append(nodes, nodeStep(c, n, six))
	}
	// Services are known on the nodes; any of them leads to one. Whatever is
	// outside the cluster is refused at once rather than waited for.
	services := c.ServiceRanges()
	control.ip = append(control.ip, fmt.Sprintf("route add %s %s", services[0], strings.Join(via4, " ")),
		"route add unreachable default metric 4096")
	if c.DualStack {
		control.ip = append(control.ip, fmt.Sprintf("route add %s %s", services[1], strings.Join(via6, " ")),
			"route add unreachable ::/0 metric 4096")
	}
	return append([]step{machine, control}, nodes...)
}

func nodeStep(c plan.Cluster, n plan.Node, six func(...string) []string) step {
	a4, a6 := c.API()
	s := step{space: n.Name, sysctls: routerSysctls(c), ip: []string{
		"link set lo up",
		fmt.Sprintf("addr add %s/24 dev eth0", n.V4),
	}}
	s.ip = append(s.ip, six(fmt.Sprintf("addr add %s/64 dev eth0 nodad", n.V6))...)
	s.ip = append(s.ip, "link set eth0 up", fmt.Sprintf("route add default via %s", a4))
	s.ip = append(s.ip, six(fmt.Sprintf("route add default via %s", a6))...)
	for _, other := range c.Workers() {
		if other.Index == n.Index {
			continue
		}
		s.ip = append(s.ip, fmt.Sprintf("route add %s via %s", other.Pods4, other.V4))
		s.ip = append(s.ip, six(fmt.Sprintf("route add %s via %s", other.Pods6, other.V6))...)
	}
	return s
}

func routerSysctls(c plan.Cluster) []string {
	s := []string{"ipv4/ip_forward=1", "ipv4/conf/all/rp_filter=0", "ipv4/conf/default/rp_filter=0",
		"ipv4/conf/all/send_redirects=0", "ipv4/conf/default/send_redirects=0"}
	if c.DualStack {
		s = append(s, "ipv6/conf/all/disable_ipv6=0", "ipv6/conf/default/disable_ipv6=0",
			"ipv6/conf/default/accept_dad=0", "ipv6/conf/all/forwarding=1")
	}
	return s
}

// MakeNetwork builds the plan's network in its namespaces.
func MakeNetwork(c plan.Cluster) error {
	for _, s := range networkSteps(c) {
		where := s.space
		if where == "" {
			where = "the machine"
		}
		if len(s.sysctls) > 0 {
			var script strings.Builder
			script.WriteString("set -e\n")
			for _, setting := range s.sysctls {
				name, value, _ := strings.Cut(setting, "=")
				fmt.Fprintf(&script, "echo %s >/proc/sys/net/%s\n", value, name)
			}
			if err := inNet(s.space, script.String(), "sh", "-s"); err != nil {
				return fmt.Errorf("set sysctls of %s: %w", where, err)
			}
		}
		if err := inNet(s.space, strings.Join(s.ip, "\n")+"\n", "ip", "-batch", "-"); err != nil {
			return fmt.Errorf("set up the network of %s: %w", where, err)
		}
	}
	return nil
}

// inNet runs a command in the network namespace alone, where the machine's
// files keep their names.
func inNet(space, input string, command ...string) error {
	if space != "" {
		command = append([]string{"nsenter", "--net=" + plan.NetPin(space), "--"}, command...)
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// NetworkWhole says whether the plan's links and addresses are all there.
func NetworkWhole(c plan.Cluster) bool {
	m4, _ := c.Machine()
	if !hasAddress("", plan.HostLink, m4) {
		return false
	}
	a4, _ := c.API()
	if !hasAddress(plan.ControlPlane, "fabric", a4) {
		return false
	}
	for _, n := range c.Workers() {
		if !hasAddress(n.Name, "eth0", n.V4) {
			return false
		}
	}
	return true
}

func hasAddress(space, link string, want netip.Addr) bool {
	command := []string{"ip", "-j", "addr", "show", "dev", link, "up"}
	if space != "" {
		command = append([]string{"nsenter", "--net=" + plan.NetPin(space), "--"}, command...)
	}
	out, err := exec.Command(command[0], command[1:]...).Output()
	if err != nil {
		return false
	}
	var links []struct {
		Addrs []struct {
			Local string `json:"local"`
		} `json:"addr_info"`
	}
	if json.Unmarshal(out, &links) != nil {
		return false
	}
	for _, l := range links {
		for _, a := range l.Addrs {
			if a.Local == want.String() {
				return true
			}
		}
	}
	return false
}

// FreeUnderlay picks the first candidate which the machine has no address
// or route in.
func FreeUnderlay(candidates []plan.Underlay) (plan.Underlay, error) {
	taken, err := takenPrefixes()
	if err != nil {
		return plan.Underlay{}, err
	}
	if u, ok := firstFree(candidates, taken); ok {
		return u, nil
	}
	return plan.Underlay{}, fmt.Errorf("each of the private networks %v overlaps with a route of this machine: take down the route (ip route) of one of them", candidates)
}

func firstFree(candidates []plan.Underlay, taken []netip.Prefix) (plan.Underlay, bool) {
next:
	for _, u := range candidates {
		for _, p := range taken {
			if p.Bits() > 0 && (p.Overlaps(u.V4) || p.Overlaps(u.V6)) {
				continue next
			}
		}
		return u, true
	}
	return plan.Underlay{}, false
}

func takenPrefixes() ([]netip.Prefix, error) {
	var taken []netip.Prefix
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			taken = append(taken, p.Masked())
		}
	}
	for _, family := range []string{"-4", "-6"} {
		out, err := exec.Command("ip", "-j", family, "route", "show", "table", "all").Output()
		if err != nil {
			continue // the family is switched off
		}
		var routes []struct {
			Dst string `json:"dst"`
		}
		if err := json.Unmarshal(out, &routes); err != nil {
			return nil, fmt.Errorf("read routes: %w", err)
		}
		for _, r := range routes {
			if p, err := netip.ParsePrefix(r.Dst); err == nil {
				taken = append(taken, p)
			} else if a, err := netip.ParseAddr(r.Dst); err == nil {
				taken = append(taken, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	return taken, nil
}

// removeLink takes the cluster's link off the machine. Its other end, and
// with it every link of the cluster, goes with the namespaces.
func removeLink() error {
	if _, err := net.InterfaceByName(plan.HostLink); err != nil {
		return nil
	}
	if out, err := exec.Command("ip", "link", "del", plan.HostLink).CombinedOutput(); err != nil {
		if _, still := net.InterfaceByName(plan.HostLink); still == nil {
			return errors.Join(fmt.Errorf("delete link %s: %s", plan.HostLink, strings.TrimSpace(string(out))), err)
		}
	}
	return nil
}
