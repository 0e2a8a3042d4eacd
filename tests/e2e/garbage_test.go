package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// garbage is what nobody should send.
func garbage() [][]byte {
	random := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 1<<16)
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	hello := append([]byte{0x16, 3, 1, 0xff, 0xff, 1, 0, 0xff, 0xfb, 3, 3}, noise[:4096]...)
	return [][]byte{
		noise, hello, noise[:1], {},
		[]byte("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n"),
		append([]byte("GET /"), bytes.Repeat([]byte("a"), 1<<20)...),
		append([]byte("GET / HTTP/1.1\r\n"), bytes.Repeat([]byte("a: b\r\n"), 1<<16)...),
		append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), noise[:8192]...),
		append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"), bytes.Repeat([]byte("\x00\x00\x00\x01\x04\x00\x00\x00\x01"), 1000)...),
		{0, 0, 0, 0, 0, 0},
	}
}

// throw sends all garbage to an address, each on a connection of its own, and
// leaves as many connections open without a word.
func throw(t *testing.T, dial func(context.Context) (net.Conn, error)) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for range 20 {
		conn, err := dial(ctx)
		if err != nil {
			return err
		}
		t.Cleanup(func() { conn.Close() })
	}
	return each(garbage(), func(g []byte) error {
		conn, err := dial(ctx)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
			return err
		}
		// That it is cut off in the middle, or left waiting, is right.
		_, _ = conn.Write(g)
		_, _ = conn.Read(make([]byte, 1024))
		return nil
	})
}

func TestGarbageOnEveryPortNeitherCrashesNorHangs(t *testing.T) {
	w := together(t)
	s := w.meshed(t, "garbage")
	made := s.run(server("target"), client("client"))
	target, from := made[0], must[place](t)(made[1].place())

	pods := []corev1.Pod{*target.Pod}
	for _, component := range []string{"hauberk-control", "hauberk-injector", "hauberk-node"} {
		pods = append(pods, must[[]corev1.Pod](t)(w.componentPods(t.Context(), component))...)
	}
	ports := map[string][]uint16{
		"hauberk-control": {15012, 15020, 15021}, "hauberk-injector": {15017, 15020, 15021}, "hauberk-node": {15020, 15021},
		"default": {15001, 15006, 15020, 15021, httpPort, tcpPort},
	}
	restarts := func(p *corev1.Pod) map[string]int32 {
		out := map[string]int32{}
		for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
			out[c.Name] = c.RestartCount
		}
		return out
	}
	check(t, each(pods, func(p corev1.Pod) error {
		r, err := found(&p)
		if err != nil {
			return err
		}
		for _, port := range ports[p.Spec.ServiceAccountName] {
			thrown := throw(t, func(ctx context.Context) (net.Conn, error) {
				return nodePlace(p.Spec.NodeName).dial(ctx, "tcp", netip.AddrPortFrom(r.v4, port).String())
			})
			if thrown != nil {
				// These are the pod's own: refusing others is as right as reading.
				if port == 15001 || port == 15006 {
					continue
				}
				return fmt.Errorf("%s port %d: %w", p.Name, port, thrown)
			}
		}
		if p.Spec.ServiceAccountName == "hauberk-node" {
			all, err := processes(string(p.UID))
			if err != nil {
				return err
			}
			socket := fmt.Sprintf("/proc/%d/root/run/hauberk/cni.sock", withCommand(all, "hauberk-node run"))
			if err := throw(t, func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "unix", socket) }); err != nil {
				return fmt.Errorf("CNI socket of %s: %w", p.Spec.NodeName, err)
			}
		}
		return nil
	}))
	// Inside the pod, where the outbound listener is.
	for _, port := range []uint16{15001, 15006, 15020, 15021, 15000} {
		for _, a := range []string{"127.0.0.1", "[::1]"} {
			if err := throw(t, func(ctx context.Context) (net.Conn, error) {
				inside, err := target.place()
				if err != nil {
					return nil, err
				}
				return inside.dial(ctx, "tcp", fmt.Sprintf("%s:%d", a, port))
			}); err != nil {
				t.Logf("%s:%d inside of the pod: %v", a, port, err)
			}
		}
	}

	// All of them go on: a new pod is injected, gets its network, its identity and
	// its policy, and the target answers it.
	check(t, s.apply(t.Context(), s.name, "apiVersion: hauberk.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: all}\nspec: {mtls: {mode: STRICT}}"))
	late := s.run(client("late-1", on("node1")), client("late-2", on("node2")))
	for _, p := range late {
		at := must[place](t)(p.place())
		got, said, err := at.try(t.Context(), attempt{protocol: "http", to: netip.AddrPortFrom(target.v4, httpPort)})
		if err != nil || !got.open() {
			t.Errorf("%s: %s %v %v", p.Name, got, said, err)
		}
	}
	if got, _, err := from.try(t.Context(), attempt{protocol: "tcp", to: netip.AddrPortFrom(target.v4, tcpPort)}); err != nil || !got.open() {
		t.Errorf("after the garbage: %s %v", got, err)
	}
	for _, p := range pods {
		now := must[*corev1.Pod](t)(w.client.CoreV1().Pods(p.Namespace).Get(t.Context(), p.Name, metav1.GetOptions{}))
		was, is := restarts(&p), restarts(now)
		for name, n := range is {
			if n != was[name] {
				t.Errorf("container %s of %s was restarted", name, p.Name)
			}
		}
		if !ready(now) {
			t.Errorf("%s is not ready: %s", p.Name, waiting(now))
		}
	}
}

// withCommand is the process whose command line ends so, or 0.
func withCommand(all []process, suffix string) int {
	for _, p := range all {
		if len(p.command) >= len(suffix) && p.command[len(p.command)-len(suffix):] == suffix {
			return p.pid
		}
	}
	return 0
}
