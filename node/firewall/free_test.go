package firewall

import (
	"context"
	"io"
	"log/slog"
	"testing"

	"sigs.k8s.io/knftables"

	"github.com/hauberk-mesh/hauberk/policy"
)

// TestKernelFree starts a bootstrap pod at the address of a pod that went while
// no agent was there.
func TestKernelFree(t *testing.T) {
	l := newLab(t)
	client, former, kept := l.pod("client"), l.pod("former"), l.pod("kept")
	for _, p := range []*labPod{former, kept} {
		p.serve(t, 80)
	}
	l.add(client, &policy.Set{ID: "open", DefaultAction: policy.Allow})
	closed := &policy.Set{ID: "closed", DefaultAction: policy.Deny}
	l.add(former, closed)
	l.add(kept, closed)
	l.expect(client, former, 80, false)

	fw, err := New(Options{Log: slog.New(slog.NewTextHandler(io.Discard, nil)), NFT: inNS{l, nil}.open()})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds nothing
		if err := fw.Free(t.Context(), former.Addresses...); err != nil {
			t.Fatal(err)
		}
	}
	l.expect(client, former, 80, true)
	l.expect(client, kept, 80, false)

	// Once it has programmed something it frees nobody.
	l.fw = fw
	l.add(kept, closed)
	if err := fw.Free(t.Context(), kept.Addresses...); err != nil {
		t.Fatal(err)
	}
	l.expect(client, kept, 80, false)
}

func (i inNS) ListElements(ctx context.Context, kind, name string) (elements []*knftables.Element, err error) {
	i.lab.node.Do(func() { elements, err = i.Interface.ListElements(ctx, kind, name) })
	return elements, err
}
