package firewall

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"sigs.k8s.io/knftables"
)

// Free takes addresses out of the rules that the agent before this one left,
// and touches nothing else. It is for a bootstrap pod that starts before the
// node's configuration is known: an address that it inherits from a pod that
// went while no agent was there must not hold the control plane to that pod's
// policy, because the configuration would then never come. Once something was
// programmed it does nothing: the rules know their pods.
func (f *Firewall) Free(ctx context.Context, addresses ...netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.current != nil || f.synced {
		return nil
	}
	var keys []string
	for _, a := range addresses {
		keys = append(keys, a.Unmap().String())
	}
	tx := f.nft.NewTransaction()
	for _, name := range []string{mapFrom4, mapFrom6, mapTo4, mapTo6,
		backChain(mapFrom4), backChain(mapFrom6), backChain(mapTo4), backChain(mapTo6)} {
		elements, err := f.nft.ListElements(ctx, "map", name)
		if knftables.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("list the rules of the agent before: %w", err)
		}
		for _, e := range elements {
			if len(e.Key) == 1 && slices.Contains(keys, e.Key[0]) {
				tx.Delete(e)
			}
		}
	}
	if tx.NumOperations() == 0 {
		return nil
	}
	if err := f.nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("free addresses %v of the rules of the agent before: %w", addresses, err)
	}
	f.log.Info("addresses freed of the policy of pods before", "addresses", addresses)
	return nil
}
