package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hauberk-mesh/hauberk/tests/stage"
)

// podRanges are of the local cluster.
var podRanges = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/56")}

// sealed wants no packet of a pod among those on the wire between nodes, and the
// tunnel's.
func sealed(seen []stage.Packet, marker string) error {
	tunnelled := 0
	for i := range seen {
		p := &seen[i]
		if p.Protocol == stage.UDP && p.Destination.Port() == 51871 {
			tunnelled++
			continue
		}
		for _, r := range podRanges {
			if r.Contains(p.Source.Addr()) && r.Contains(p.Destination.Addr()) {
				return fmt.Errorf("in clear: %s → %s, protocol %d, %q", p.Source, p.Destination, p.Protocol, clip(p.Payload))
			}
		}
		if bytes.Contains(p.Payload, []byte(marker)) {
			return fmt.Errorf("in clear: %s → %s holds %q", p.Source, p.Destination, marker)
		}
	}
	if tunnelled == 0 {
		return fmt.Errorf("no packet of the tunnel among %d: the capture shows nothing", len(seen))
	}
	return nil
}

func clip(b []byte) []byte { return b[:min(len(b), 60)] }

func TestBetweenNodesNothingOfPodsGoesInClear(t *testing.T) {
	w := together(t)
	for name, changes := range map[string][]change{"meshed": {labelled("hauberk.dev/inject", "enabled")}, "plain": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := w.space(t, "wire-"+name, nil)
			made := s.run(server("target", append(changes, on("node1"))...), client("client", append(changes, on("node2"))...))
			target, at := made[0], must[place](t)(made[1].place())
			const marker = "e2e-marker"
			// Both sidecars have met their peer, before and not while it is listened to.
			check(t, eventually(t.Context(), 30*time.Second, "the pods reach each other", func(ctx context.Context) error {
				got, _, err := at.try(ctx, attempt{protocol: "tcp", to: cell{protocol: "tcp"}.to(target)})
				if err == nil && !got.open() {
					err = fmt.Errorf("tcp: %s", got)
				}
				return err
			}))
			packets, err := s.Capture(t.Context(), "node1", "eth0", "ip or ip6", func(ctx context.Context) error {
				var failures []error
				for _, v6 := range []bool{false, true} {
					for _, protocol := range []string{"tcp", "udp", "ping", "http"} {
						a := attempt{protocol: protocol, to: cell{protocol: protocol, v6: v6}.to(target), path: "/" + marker}
						if got, _, err := at.try(ctx, a); err != nil || !got.open() {
							failures = append(failures, fmt.Errorf("%s, IPv6 %v: %s %v", protocol, v6, got, err))
						}
					}
					failures = append(failures, large(ctx, at, target, v6, marker))
				}
				return errors.Join(failures...)
			})
			check(t, err)
			if err := sealed(packets, marker); err != nil {
				t.Error(err)
			}
		})
	}
}

// What is still sent to a pod that has gone has no route of its own, and would
// follow the default route.
func TestWhatIsSentToADepartedPodGoesNowhere(t *testing.T) {
	w := together(t)
	s := w.space(t, "departed", nil)
	made := s.run(server("target", on("node1")), client("near", on("node1")), client("far", on("node2")))
	target := made[0]
	from := map[string]place{"its node": must[place](t)(made[1].place()), "another node": must[place](t)(made[2].place())}
	for where, at := range from {
		got, _, err := at.try(t.Context(), attempt{protocol: "tcp", to: cell{protocol: "tcp"}.to(target)})
		if err != nil || !got.open() {
			t.Fatalf("before, from %s: %s %v", where, got, err)
		}
	}
	now := int64(0)
	check(t, w.client.CoreV1().Pods(s.name).Delete(t.Context(), target.Name, metav1.DeleteOptions{GracePeriodSeconds: &now}))
	within(t, 30*time.Second, "the pod's route is gone", func(ctx context.Context) error {
		got, err := s.OnNode(ctx, "node1", "ip", "route", "show", target.v4.String())
		if err == nil && strings.TrimSpace(got.Out) != "" {
			err = errors.New(got.Out)
		}
		return err
	})
	packets, err := s.Capture(t.Context(), "node1", "eth0", "ip or ip6", func(ctx context.Context) error {
		var failures []error
		for where, at := range from {
			for _, v6 := range []bool{false, true} {
				for protocol, want := range map[string]seen{"tcp": refused, "udp": dropped} {
					if got, _, err := at.try(ctx, attempt{protocol: protocol, to: cell{protocol: protocol, v6: v6}.to(target)}); err != nil || got != want {
						failures = append(failures, fmt.Errorf("%s from %s, IPv6 %v: %s %v, want %s", protocol, where, v6, got, err, want))
					}
				}
			}
		}
		return errors.Join(failures...)
	})
	check(t, err)
	for i := range packets {
		p := &packets[i]
		if to := p.Destination.Addr(); to == target.v4 || to == target.v6 {
			t.Errorf("on node1's underlay: %s → %s, protocol %d, %q", p.Source, p.Destination, p.Protocol, clip(p.Payload))
		}
	}
}

// large sends what does not fit into one packet, and wants it back whole.
func large(ctx context.Context, at place, target *running, v6 bool, marker string) error {
	text := strings.Repeat(marker, 1<<17/len(marker))
	got, err := at.http(ctx, attempt{to: cell{protocol: "http", v6: v6}.to(target), method: http.MethodPost, body: text})
	if err != nil || !strings.Contains(got.body, text) {
		return fmt.Errorf("128 KiB by TCP, IPv6 %v: %d bytes came back: %v", v6, len(got.body), err)
	}
	// Each try may lose a fragment.
	for range 3 {
		if err = datagram(ctx, at, cell{protocol: "udp", v6: v6}.to(target), text[:8000]); err == nil {
			return nil
		}
	}
	return err
}

func datagram(ctx context.Context, at place, to netip.AddrPort, text string) error {
	udp, err := at.dial(ctx, "udp", to.String())
	if err != nil {
		return err
	}
	defer udp.Close()
	if err := udp.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := io.WriteString(udp, text); err != nil {
		return err
	}
	buffer := make([]byte, 1<<16)
	n, err := udp.Read(buffer)
	if err != nil || !bytes.Contains(buffer[:n], []byte(text)) {
		return fmt.Errorf("%d bytes by UDP to %s: %d came back: %v", len(text), to, n, err)
	}
	return nil
}

// TestLostTunnelHealsAndNothingGoesInClear disturbs node1: its tunnel's device is
// taken away.
func TestLostTunnelHealsAndNothingGoesInClear(t *testing.T) {
	w := alone(t)
	s := w.space(t, "wire-lost", nil)
	made := s.run(server("target", on("node1")), client("client", on("node2")))
	target, at := made[0], must[place](t)(made[1].place())
	const marker = "hello" // what attempts send
	packets, err := s.Capture(t.Context(), "node1", "eth0", "ip or ip6", func(ctx context.Context) error {
		flow, err := at.dial(ctx, "udp", cell{protocol: "udp"}.to(target).String())
		if err != nil {
			return err
		}
		defer flow.Close()
		if got, _, err := echoed(flow, patience); err != nil || !got.open() {
			return fmt.Errorf("before: %s %v", got, err)
		}
		got, err := s.OnNode(ctx, "node1", "ip", "link", "delete", "hauberk-wg")
		if err != nil || got.Code != 0 {
			return fmt.Errorf("take the device away: %v %s", err, got.Err)
		}
		start := time.Now()
		err = eventually(ctx, 40*time.Second, "the tunnel is back", func(ctx context.Context) error {
			got, _, err := echoed(flow, 200*time.Millisecond)
			if err == nil && !got.open() {
				err = fmt.Errorf("%s", got)
			}
			return err
		})
		if err == nil {
			t.Logf("the tunnel was back after %s", time.Since(start).Round(10*time.Millisecond))
		}
		for _, v6 := range []bool{false, true} {
			for _, protocol := range []string{"tcp", "udp", "ping"} {
				if got, _, err := at.try(ctx, attempt{protocol: protocol, to: cell{protocol: protocol, v6: v6}.to(target)}); err != nil || !got.open() {
					return fmt.Errorf("after: %s, IPv6 %v: %s %v", protocol, v6, got, err)
				}
			}
		}
		return err
	})
	check(t, err)
	if err := sealed(packets, marker); err != nil {
		t.Error(err)
	}
	within(t, 30*time.Second, "hauberk node tunnels shows the handshakes", func(ctx context.Context) error {
		got, err := w.hauberk(ctx, "node", "tunnels")
		if err != nil {
			return err
		}
		if got.Code != 0 || !strings.Contains(got.Out, "node1") || !strings.Contains(got.Out, "node2") {
			return fmt.Errorf("exit code %d: %s%s", got.Code, got.Out, got.Err)
		}
		return nil
	})
}
