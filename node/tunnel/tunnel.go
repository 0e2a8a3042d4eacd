// Package tunnel keeps a node's end of the WireGuard mesh: the device, its
// key, its peers, the routes that lead pod traffic into it, its MTU, and the
// kernel rules that keep pod traffic from leaving in the clear. It owns the
// link "hauberk-wg", the routing table and rules numbered Table, and the
// nftables table "inet hauberk-tunnel".
//
// Only traffic from pods to pods of other nodes is led into the tunnel. What
// nodes say to each other stays on the underlay, so the tunnel never carries
// its own packets, and a node agent reaches the control plane before there is
// a tunnel.
//
// The device is the kernel's where the kernel has WireGuard; else a userspace
// one that runs in a process of its own (RunDevice), so that a restart of the
// node agent touches neither. The private key is made on the node and lives in
// the device: a restarted agent reads it back from there, and no disk has it.
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"sigs.k8s.io/knftables"

	"github.com/hauberk-mesh/hauberk/internal/names"
)

// Interface is the link's name.
const Interface = "hauberk-wg"

// Table is the routing table of pod traffic, and the priority of the rules
// that lead to it.
const Table = 5187

// overhead is what WireGuard adds to a packet on an IPv6 underlay: 40 of IPv6, 8 of
// UDP, 32 of its own (whitepaper section 5.4.6). IPv4 takes 20 less; counting
// for IPv6 suits both.
const overhead = 80

// Peer is another node.
type Peer struct {
	Node string
	// PublicKey is zero while the node has not told one: its pods are known and
	// cannot be reached yet.
	PublicKey wgtypes.Key
	// Endpoints are the node's underlay addresses, the best first.
	Endpoints []netip.AddrPort
	// AllowedIPs are the addresses of its pods.
	AllowedIPs []netip.Prefix
}

// State is what the tunnel should be.
type State struct {
	Enabled bool
	// Strict lets no pod traffic to another node leave in the clear.
	Strict bool
	Peers  []Peer
	// PodCIDRs is the addresses of all pods: what comes from them is led in.
	PodCIDRs []netip.Prefix
	// Local is the addresses of this node's pods, those that are there and those
	// that have gone.
	Local []netip.Prefix
}

// Status is what the tunnel is.
type Status struct {
	Enabled   bool         `json:"enabled"`
	Backend   string       `json:"backend"` // "kernel" or "userspace"
	Interface string       `json:"interface"`
	PublicKey string       `json:"publicKey"`
	Port      int          `json:"port"`
	MTU       int          `json:"mtu"`
	Strict    bool         `json:"strict"`
	Problem   string       `json:"problem,omitempty"`
	Peers     []PeerStatus `json:"peers"`
}

// PeerStatus is one peer's.
type PeerStatus struct {
	Node          string    `json:"node"`
	PublicKey     string    `json:"publicKey,omitempty"`
	Endpoint      string    `json:"endpoint,omitempty"`
	AllowedIPs    []string  `json:"allowedIPs"`
	LastHandshake time.Time `json:"lastHandshake,omitzero"`
	ReceivedBytes int64     `json:"receivedBytes"`
	SentBytes     int64     `json:"sentBytes"`
}

// Options configures a Tunnel.
type Options struct {
	Log *slog.Logger
	// Interface is the link's name; Interface by default.
	Interface string
	// Port is WireGuard's UDP port; names.PortTunnel by default.
	Port int
	// NFT runs transactions; nil means the nft binary on "inet hauberk-tunnel".
	NFT knftables.Interface
}

// Tunnel converges the kernel to State. It is safe for concurrent use.
type Tunnel struct {
	log   *slog.Logger
	name  string
	port  int
	nft   knftables.Interface
	wake  chan struct{}
	known chan struct{} // closed when the key is known

	mu      sync.Mutex
	key     wgtypes.Key // zero until the device told or took one
	backend string
	state   State
	applied bool // Apply was called
	guarded string
	problem string
}

// New is a Tunnel that has touched nothing yet; Run makes it work.
func New(o Options) (*Tunnel, error) {
	if o.Log == nil {
		return nil, errors.New("tunnel: no logger")
	}
	if o.Interface == "" {
		o.Interface = Interface
	}
	if o.Port == 0 {
		o.Port = names.PortTunnel
	}
	if o.NFT == nil {
		nft, err := knftables.New(knftables.InetFamily, names.TunnelTable)
		if err != nil {
			return nil, fmt.Errorf("nftables is not usable: %w", err)
		}
		o.NFT = nft
	}
	return &Tunnel{log: o.Log, name: o.Interface, port: o.Port, nft: o.NFT,
		wake: make(chan struct{}, 1), known: make(chan struct{})}, nil
}

// Known is closed when PublicKey and Backend are known.
func (t *Tunnel) Known() <-chan struct{} { return t.known }

// PublicKey is the node's; zero until Known.
func (t *Tunnel) PublicKey() wgtypes.Key {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.key == (wgtypes.Key{}) {
		return wgtypes.Key{}
	}
	return t.key.PublicKey()
}

// Backend is "kernel" or "userspace"; empty until Known.
func (t *Tunnel) Backend() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.backend
}

// Apply makes s the desired state. It returns when the guard against clear
// text is in place; device, peers and routes follow at once and are retried
// by Run until they hold.
func (t *Tunnel) Apply(ctx context.Context, s State) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state, t.applied = s, true
	if err := t.guard(ctx); err != nil {
		return fmt.Errorf("guard pod traffic against leaving in the clear: %w", err)
	}
	select {
	case t.wake <- struct{}{}:
	default:
	}
	return nil
}

// Run converges until ctx is done. It leaves everything in place at the end.
func (t *Tunnel) Run(ctx context.Context) error {
	client, err := wgctrl.New()
	if err != nil {
		return fmt.Errorf("open WireGuard control: %w", err)
	}
	defer client.Close()
	// Once in two seconds the device is looked at: a userspace device that was
	// restarted comes back empty and must be told everything again.
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		err := t.converge(ctx, client)
		t.mu.Lock()
		problem := ""
		if err != nil {
			problem = err.Error()
		}
		if problem != t.problem && problem != "" {
			t.log.Warn("tunnel is not whole, retrying", "error", problem)
		} else if problem != t.problem {
			t.log.Info("tunnel is whole", "backend", t.backend, "peers", len(t.state.Peers))
		}
		t.problem = problem
		t.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-t.wake:
		case <-tick.C:
		}
	}
}

// converge brings device, link, peers and routes to the desired state.
func (t *Tunnel) converge(ctx context.Context, client *wgctrl.Client) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.applied && !t.state.Enabled {
		return t.remove(ctx)
	}
	if t.applied {
		// The underlay's links come and go, and the guard names them.
		if err := t.guard(ctx); err != nil {
			return fmt.Errorf("guard pod traffic against leaving in the clear: %w", err)
		}
	}
	backend, err := ensureLink(t.name)
	if err != nil {
		return err
	}
	dev, err := client.Device(t.name)
	if err != nil {
		return fmt.Errorf("read WireGuard device %s: %w", t.name, err)
	}
	if err := t.ensureKey(client, dev, backend); err != nil {
		return err
	}
	if !t.applied {
		return nil // a restart: what the last process configured stays until we know better
	}
	if cfg, changed := t.configuration(dev); changed {
		if err := client.ConfigureDevice(t.name, cfg); err != nil {
			return fmt.Errorf("configure WireGuard device %s: %w", t.name, err)
		}
	}
	link, err := upLink(t.name, t.state.Peers)
	if err != nil {
		return err
	}
	return syncRoutes(link, t.state)
}

// ensureKey takes the key from the device, or gives it one.
func (t *Tunnel) ensureKey(client *wgctrl.Client, dev *wgtypes.Device, backend string) error {
	none := wgtypes.Key{}
	switch {
	case t.key == none && dev.PrivateKey != none:
		t.key = dev.PrivateKey
	case t.key == none:
		key, err := wgtypes.GeneratePrivateKey()
		if err != nil {
			return fmt.Errorf("make a WireGuard key: %w", err)
		}
		t.key = key
		fallthrough
	case dev.PrivateKey != t.key || dev.ListenPort != t.port:
		if err := client.ConfigureDevice(t.name, wgtypes.Config{PrivateKey: &t.key, ListenPort: &t.port}); err != nil {
			return fmt.Errorf("set key and port of %s: %w", t.name, err)
		}
	}
	t.backend = backend
	select {
	case <-t.known:
	default:
		close(t.known)
	}
	return nil
}

// configuration is what the device's peers lack, and whether it is anything.
func (t *Tunnel) configuration(dev *wgtypes.Device) (wgtypes.Config, bool) {
	var cfg wgtypes.Config
	have := make(map[wgtypes.Key]wgtypes.Peer, len(dev.Peers))
	for _, p := range dev.Peers {
		have[p.PublicKey] = p
	}
	want := make(map[wgtypes.Key]bool, len(t.state.Peers))
	for _, p := range t.state.Peers {
		if p.PublicKey == (wgtypes.Key{}) || len(p.Endpoints) == 0 {
			continue
		}
		want[p.PublicKey] = true
		old, ok := have[p.PublicKey]
		endpoint := udpAddr(p.Endpoints[0])
		allowed := ipNets(p.AllowedIPs)
		if ok && sameNets(old.AllowedIPs, allowed) && old.Endpoint != nil && old.Endpoint.Port == endpoint.Port && old.Endpoint.IP.Equal(endpoint.IP) {
			continue
		}
		cfg.Peers = append(cfg.Peers, wgtypes.PeerConfig{
			PublicKey: p.PublicKey, Endpoint: endpoint, ReplaceAllowedIPs: true, AllowedIPs: allowed,
		})
	}
	for key := range have {
		if !want[key] {
			cfg.Peers = append(cfg.Peers, wgtypes.PeerConfig{PublicKey: key, Remove: true})
		}
	}
	return cfg, len(cfg.Peers) > 0
}

// Status reads the device.
func (t *Tunnel) Status() Status {
	t.mu.Lock()
	s := Status{Enabled: t.state.Enabled, Backend: t.backend, Interface: t.name, Port: t.port, Strict: t.state.Strict, Problem: t.problem, Peers: []PeerStatus{}}
	if t.key != (wgtypes.Key{}) {
		s.PublicKey = t.key.PublicKey().String()
	}
	peers := t.state.Peers
	t.mu.Unlock()

	byKey := map[wgtypes.Key]wgtypes.Peer{}
	if client, err := wgctrl.New(); err == nil {
		defer client.Close()
		if dev, err := client.Device(t.name); err == nil {
			for _, p := range dev.Peers {
				byKey[p.PublicKey] = p
			}
		}
	}
	s.MTU = linkMTU(t.name)
	for _, p := range peers {
		ps := PeerStatus{Node: p.Node, AllowedIPs: []string{}}
		for _, a := range p.AllowedIPs {
			ps.AllowedIPs = append(ps.AllowedIPs, a.String())
		}
		if p.PublicKey != (wgtypes.Key{}) {
			ps.PublicKey = p.PublicKey.String()
		}
		if d, ok := byKey[p.PublicKey]; ok {
			if d.Endpoint != nil {
				ps.Endpoint = d.Endpoint.String()
			}
			ps.LastHandshake, ps.ReceivedBytes, ps.SentBytes = d.LastHandshakeTime, d.ReceiveBytes, d.TransmitBytes
		}
		s.Peers = append(s.Peers, ps)
	}
	return s
}
