package agent

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/node/cniserver"
	"github.com/hauberk-mesh/hauberk/node/firewall"
	"github.com/hauberk-mesh/hauberk/node/redirect"
	"github.com/hauberk-mesh/hauberk/policy"
)

func readMesh(m *hauberkv1.Mesh) (*mesh, error) {
	pods, err := readPrefixes(m.GetPodCidrs())
	if err != nil {
		return nil, fmt.Errorf("pod address ranges: %w", err)
	}
	out := &mesh{trustDomain: m.GetTrustDomain(), roots: m.GetRoots(), podCIDRs: pods, strict: m.GetEncryptionStrict(),
		nodes: map[netip.Addr]string{}, ranges: map[string][]netip.Prefix{}}
	for _, n := range m.GetNodes() {
		addresses, err := readAddresses(n.GetAddresses())
		if err != nil {
			return nil, fmt.Errorf("addresses of node %s: %w", n.GetNode(), err)
		}
		if out.ranges[n.GetNode()], err = readPrefixes(n.GetPodCidrs()); err != nil {
			return nil, fmt.Errorf("pod address ranges of node %s: %w", n.GetNode(), err)
		}
		out.hosts = append(out.hosts, addresses...)
		for _, a := range addresses {
			out.nodes[a] = n.GetNode()
		}
	}
	return out, nil
}

func readWorkload(w *hauberkv1.Workload) (*workload, error) {
	if w.GetUid() == "" {
		return nil, errors.New("it has no uid")
	}
	addresses, err := readAddresses(w.GetAddresses())
	if err != nil {
		return nil, fmt.Errorf("addresses: %w", err)
	}
	ports, err := readPorts(w.GetNamedPorts())
	if err != nil {
		return nil, err
	}
	out := &workload{Workload: w, addresses: addresses, ports: ports}
	// A pod whose annotations can't be read must not spoil its neighbours': its
	// ADD fails, and what is not captured is the kernel's to decide alone.
	if rules, err := cniserver.Rules(w.GetCapture()); err == nil {
		out.capture = captureOf(&rules)
	}
	return out, nil
}

// captureOf is what redirection leaves out, for the firewall.
func captureOf(r *redirect.Rules) firewall.Capture {
	return firewall.Capture{
		ExcludeInboundPorts: r.ExcludeInboundPorts, IncludeInboundPorts: r.IncludeInboundPorts,
		ExcludeOutboundPorts: r.ExcludeOutboundPorts, ExcludeOutboundCIDRs: r.ExcludeOutboundCIDRs,
	}
}

func readMembers(s *hauberkv1.PeerSet) ([]firewall.Member, error) {
	if s.GetId() == "" {
		return nil, errors.New("it has no id")
	}
	members := make([]firewall.Member, 0, len(s.GetMembers()))
	for _, m := range s.GetMembers() {
		addresses, err := readAddresses(m.GetAddresses())
		if err != nil {
			return nil, fmt.Errorf("addresses of pod %s: %w", m.GetUid(), err)
		}
		ports, err := readPorts(m.GetNamedPorts())
		if err != nil {
			return nil, fmt.Errorf("pod %s: %w", m.GetUid(), err)
		}
		members = append(members, firewall.Member{Addresses: addresses, NamedPorts: ports})
	}
	return members, nil
}

func readPorts(ports []*hauberkv1.NamedPort) ([]policy.NamedPort, error) {
	var out []policy.NamedPort
	for _, p := range ports {
		if p.GetPort() == 0 || p.GetPort() > math.MaxUint16 || p.GetProtocol() > math.MaxUint8 {
			return nil, fmt.Errorf("named port %q is %d of protocol %d, which is none", p.GetName(), p.GetPort(), p.GetProtocol())
		}
		out = append(out, policy.NamedPort{Name: p.GetName(), Protocol: policy.Protocol(p.GetProtocol()), Port: uint16(p.GetPort())})
	}
	return out, nil
}

func readAddresses(texts []string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, text := range texts {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, err
		}
		out = append(out, a.Unmap())
	}
	return out, nil
}

func readPrefixes(texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, err
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
