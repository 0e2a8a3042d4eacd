package server

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/control/tunnels"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// tunnelKeys stores what node agents report of their WireGuard keys. The node
// comes from the reporter's certificate.
type tunnelKeys struct {
	client kubernetes.Interface
	log    *slog.Logger
	wake   chan struct{}     // holds at most one token
	stored map[string]string // public key as last stored; run's own

	mu      sync.Mutex
	waiting map[string]tunnels.Entry // newest report of each node
}

func newTunnelKeys(client kubernetes.Interface, log *slog.Logger) *tunnelKeys {
	return &tunnelKeys{
		client: client, log: log, wake: make(chan struct{}, 1),
		waiting: make(map[string]tunnels.Entry), stored: make(map[string]string),
	}
}

// report takes a node agent's report; it does not block.
func (k *tunnelKeys) report(node string, r *hauberkv1.NodeReport) {
	if len(r.GetWireguardPublicKey()) == 0 {
		return // no tunnel yet
	}
	if r.GetWireguardPort() > 65535 {
		k.log.Warn("node reports a tunnel that is none", "node", node, "port", r.GetWireguardPort())
		return
	}
	entry := tunnels.Entry{PublicKey: r.GetWireguardPublicKey(), Port: uint16(r.GetWireguardPort()), Backend: r.GetWireguardBackend()}
	if err := entry.Validate(); err != nil {
		k.log.Warn("node reports a tunnel that is none", "node", node, "error", err)
		return
	}
	k.mu.Lock()
	k.waiting[node] = entry
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// run stores reports until ctx is done. What could not be stored is tried
// again.
func (k *tunnelKeys) run(ctx context.Context) error {
	retry := time.NewTicker(10 * time.Second)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.wake:
		case <-retry.C:
		}
		k.mu.Lock()
		batch := k.waiting
		k.waiting = make(map[string]tunnels.Entry)
		k.mu.Unlock()
		for node, entry := range batch {
			if err := tunnels.Store(ctx, k.client.CoreV1().ConfigMaps(names.Namespace), node, entry); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				k.log.Warn("tunnel key is not stored, it is tried again", "node", node, "error", err)
				k.mu.Lock()
				if _, newer := k.waiting[node]; !newer {
					k.waiting[node] = entry
				}
				k.mu.Unlock()
				continue
			}
			if key := string(entry.PublicKey); k.stored[node] != key {
				k.stored[node] = key
				k.log.Info("tunnel key of node is stored", "node", node, "backend", entry.Backend)
			}
		}
	}
}
