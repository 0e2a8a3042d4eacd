// Package plan owns the shape of the local test cluster: how many nodes it
// has, what each is called, its addresses and its folders. It is pure
// arithmetic: it reads nothing from the machine and changes nothing on it.
package plan

import (
	"fmt"
	"net/netip"
	"path/filepath"
)

// Versions of what the cluster runs.
const (
	KubernetesVersion = "v1.36.3"
	CoreDNSVersion    = "v1.15.0"
)

// MaxNodes bounds the cluster: node addresses and pod ranges are one byte each.
const MaxNodes = 64

// Names and folders which belong to the cluster alone, so that whatever bears
// one of them may be removed by whoever finds it.
const (
	// Root holds everything the running cluster keeps on the machine.
	Root = "/var/lib/hauberk-cluster"
	// LockPath is held by whoever changes the cluster.
	LockPath = "/run/hauberk-cluster.lock"
	// HostLink is the one network link in the machine's own namespace.
	HostLink = "hauberk0"
	// CgroupName is the one cgroup, in each hierarchy, above all others.
	CgroupName = "hauberk-cluster"
	// ControlPlane names the namespace of the control plane.
	ControlPlane = "control-plane"
)

// Images which the cluster makes for itself.
const (
	PauseImage   = "hauberk.test/pause:1"
	CoreDNSImage = "hauberk.test/coredns:" + CoreDNSVersion
)

// Underlay is the private network which the nodes share. The machine itself
// is host 1, the control plane host 2 and node i host 10+i.
type Underlay struct {
	V4 netip.Prefix `json:"v4"`
	V6 netip.Prefix `json:"v6"`
}

// Candidates are the underlays to choose from, in order of preference: the
// first which the machine has no address or route in is taken.
func Candidates() []Underlay {
	var us []Underlay
	for _, third := range []int{101, 173, 211, 37} {
		us = append(us, Underlay{
			V4: netip.MustParsePrefix(fmt.Sprintf("10.%d.77.0/24", third)),
			V6: netip.MustParsePrefix(fmt.Sprintf("fd6a:7562:%x::/64", third)),
		})
	}
	return us
}

// Cluster is a whole plan.
type Cluster struct {
	Nodes    int      `json:"nodes"`
	Underlay Underlay `json:"underlay"`
	// DualStack says whether pods, services and nodes have IPv6 too.
	DualStack bool `json:"dualStack"`
	// CgroupV2 is true on a machine with the unified hierarchy alone.
	CgroupV2 bool `json:"cgroupV2"`
	// Snapshotter is containerd's: overlayfs, or native where that cannot be.
	Snapshotter string `json:"snapshotter"`
}

// Validate says whether the plan can be carried out.
func (c Cluster) Validate() error {
	if c.Nodes < 1 || c.Nodes > MaxNodes {
		return fmt.Errorf("NODES=%d: a cluster has from 1 to %d worker nodes", c.Nodes, MaxNodes)
	}
	return nil
}

// Node is one worker.
type Node struct {
	Index int    // from 1
	Name  string // node1, node2, …
	V4    netip.Addr
	V6    netip.Addr
	Pods4 netip.Prefix
	Pods6 netip.Prefix
}

// Ranges of the overlay. They are the same in every cluster, since nothing of
// them is ever visible in the machine's own network.
var (
	pods4     = netip.MustParsePrefix("10.244.0.0/16")
	pods6     = netip.MustParsePrefix("fd00:10:244::/56")
	services4 = netip.MustParsePrefix("10.96.0.0/16")
	services6 = netip.MustParsePrefix("fd00:10:96::/112")
)

// DNSAddress is the cluster DNS service's, one for each family in use.
func (c Cluster) DNSAddress() []netip.Addr {
	return c.families(netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a"))
}

// ServiceAddress is the Kubernetes API's own ClusterIP.
func (c Cluster) ServiceAddress() []netip.Addr {
	return c.families(netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00:10:96::1"))
}

// PodRanges are the cluster's pod ranges, IPv4 first.
func (c Cluster) PodRanges() []netip.Prefix { return both(c, pods4, pods6) }

// ServiceRanges are the cluster's service ranges, IPv4 first.
func (c Cluster) ServiceRanges() []netip.Prefix { return both(c, services4, services6) }

func (c Cluster) families(v4, v6 netip.Addr) []netip.Addr {
	if c.DualStack {
		return []netip.Addr{v4, v6}
	}
	return []netip.Addr{v4}
}

func both(c Cluster, v4, v6 netip.Prefix) []netip.Prefix {
	if c.DualStack {
		return []netip.Prefix{v4, v6}
	}
	return []netip.Prefix{v4}
}

// Host is the nth address of the underlay in each family.
func (u Underlay) Host(n byte) (v4, v6 netip.Addr) {
	b4 := u.V4.Addr().As4()
	b4[3] = n
	b6 := u.V6.Addr().As16()
	b6[15] = n
	return netip.AddrFrom4(b4), netip.AddrFrom16(b6)
}

// Machine is the machine's own address in the underlay.
func (c Cluster) Machine() (v4, v6 netip.Addr) { return c.Underlay.Host(1) }

// API is the control plane's address.
func (c Cluster) API() (v4, v6 netip.Addr) { return c.Underlay.Host(2) }

// Server is the API server's URL.
func (c Cluster) Server() string {
	v4, _ := c.API()
	return fmt.Sprintf("https://%s:6443", v4)
}

// Workers are the plan's nodes in order.
func (c Cluster) Workers() []Node {
	nodes := make([]Node, 0, c.Nodes)
	for i := 1; i <= c.Nodes; i++ {
		n := Node{Index: i, Name: fmt.Sprintf("node%d", i)}
		n.V4, n.V6 = c.Underlay.Host(byte(10 + i))
		b4 := pods4.Addr().As4()
		b4[2] = byte(i)
		n.Pods4 = netip.PrefixFrom(netip.AddrFrom4(b4), 24)
		b6 := pods6.Addr().As16()
		b6[7] = byte(i)
		n.Pods6 = netip.PrefixFrom(netip.AddrFrom16(b6), 64)
		nodes = append(nodes, n)
	}
	return nodes
}

// Addresses of the node in the families of the cluster, IPv4 first.
func (c Cluster) Addresses(n Node) []netip.Addr { return c.families(n.V4, n.V6) }

// PodCIDRs of the node in the families of the cluster, IPv4 first.
func (c Cluster) PodCIDRs(n Node) []netip.Prefix { return both(c, n.Pods4, n.Pods6) }

// Spaces are the names of all namespaces: the control plane, then each node.
func (c Cluster) Spaces() []string {
	names := []string{ControlPlane}
	for _, n := range c.Workers() {
		names = append(names, n.Name)
	}
	return names
}

// PinDir is the folder, a file system of its own, in which namespaces are
// kept alive by a mount.
func PinDir() string { return filepath.Join(Root, "ns") }

// NetPin is the file which keeps a space's network namespace.
func NetPin(space string) string { return filepath.Join(PinDir(), space+".net") }

// MountPin is the file which keeps a space's mount namespace.
func MountPin(space string) string { return filepath.Join(PinDir(), space+".mnt") }

// PKIDir holds keys and certificates.
func PKIDir() string { return filepath.Join(Root, "pki") }

// ConfigDir holds what the components are configured by.
func ConfigDir(space string) string { return filepath.Join(Root, "config", space) }

// PIDDir holds one file a running component.
func PIDDir() string { return filepath.Join(Root, "pids") }

// NodeDir holds what a node keeps on disk.
func NodeDir(space string) string { return filepath.Join(Root, "nodes", space) }

// EtcdDir holds the cluster's objects.
func EtcdDir() string { return filepath.Join(Root, "etcd") }

// OwnerPath names the checkout whose cluster it is.
func OwnerPath() string { return filepath.Join(Root, "owner.json") }
