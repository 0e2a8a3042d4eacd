package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"
)

func TestPeerAuthenticationDecidesAboutPlainClients(t *testing.T) {
	w := together(t)
	s := w.meshed(t, "pa")
	pods := s.run(server("target"), client("meshed", on("node2")), client("plain", on("node2"), labelled("hauberk.dev/inject", "disabled")))
	target := pods[0]
	places := map[string]place{"meshed": must[place](t)(pods[1].place()), "plain": must[place](t)(pods[2].place())}
	const head = "apiVersion: hauberk.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: %s}\nspec: %s\n---\n"
	for _, test := range []struct {
		name, manifests string
		http, tcp       bool // are open to the plain client
	}{
		{"none means PERMISSIVE", "", true, true},
		{"STRICT for the namespace", fmt.Sprintf(head, "all", "{mtls: {mode: STRICT}}"), false, false},
		{"the pod before the namespace", fmt.Sprintf(head, "all", "{mtls: {mode: STRICT}}") + fmt.Sprintf(head, "one", "{podSelector: {matchLabels: {app: target}}, mtls: {mode: PERMISSIVE}}"), true, true},
		{"the port before the pod", fmt.Sprintf(head, "one", `{podSelector: {matchLabels: {app: target}}, mtls: {mode: STRICT}, portLevelMtls: {"8080": {mode: PERMISSIVE}}}`), true, false},
		{"STRICT for a port", fmt.Sprintf(head, "one", `{podSelector: {matchLabels: {app: target}}, mtls: {mode: PERMISSIVE}, portLevelMtls: {"8080": {mode: STRICT}}}`), false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			check(t, s.apply(t.Context(), s.name, test.manifests))
			look := func(ctx context.Context) error {
				return each([]string{"meshed http", "meshed tcp", "plain http", "plain tcp"}, func(c string) error {
					var from, protocol string
					if _, err := fmt.Sscan(c, &from, &protocol); err != nil {
						return err
					}
					var failures []error
					for _, v6 := range []bool{false, true} {
						got, _, err := places[from].try(ctx, attempt{protocol: protocol, to: cell{protocol: protocol, v6: v6}.to(target)})
						want := from == "meshed" || protocol == "http" && test.http || protocol == "tcp" && test.tcp
						if err != nil || got.open() != want {
							failures = append(failures, fmt.Errorf("%s (IPv6: %v): %s %v, and open should be %v", c, v6, got, err, want))
						}
					}
					return errors.Join(failures...)
				})
			}
			within(t, 30*time.Second, "plain clients are treated as it says", func(ctx context.Context) error { return errors.Join(look(ctx), look(ctx)) })
			// The kubelet's probes of the sidecar are not the mesh's clients: the pod
			// stays ready.
			if _, err := s.ready(t.Context(), "target"); err != nil {
				t.Error(err)
			}
			// What no probe of the pod asks for, the sidecar's ports do not tell either.
			got, _, err := places["plain"].try(t.Context(), attempt{protocol: "http", to: netip.AddrPortFrom(target.v4, 15006)})
			if err == nil && got.open() {
				t.Error("the sidecar's inbound port answers by itself")
			}
			check(t, s.remove(t.Context(), s.name, test.manifests))
		})
	}
}
