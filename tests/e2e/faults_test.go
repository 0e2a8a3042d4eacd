package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// guarded is a server that friend may reach and stranger may not, watched all the
// time: what is denied never succeeds, what is allowed never fails.
type guarded struct {
	*space
	target, friend, stranger *running
	asFriend, asStranger     place

	tries, replies atomic.Int64
	breaches       chan string // holds the first few
	errors         chan string
}

// guard makes it. Nothing is counted before watch.
func (w *world) guard(t *testing.T, hint string) *guarded {
	t.Helper()
	s := w.meshed(t, hint)
	made := s.run(server("target", on("node1")), client("friend", on("node2")), client("stranger", on("node1")))
	g := &guarded{space: s, target: made[0], friend: made[1], stranger: made[2], breaches: make(chan string, 5), errors: make(chan string, 5)}
	g.asFriend, g.asStranger = must[place](t)(g.friend.place()), must[place](t)(g.stranger.place())
	check(t, s.apply(t.Context(), s.name, networkPolicy+"  {podSelector: {matchLabels: {app: target}}, ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]}"))
	within(t, 15*time.Second, "the policy is in force", func(ctx context.Context) error {
		var failures []error
		for _, protocol := range []string{"tcp", "http", "udp"} {
			for at, want := range map[place]bool{g.asFriend: true, g.asStranger: false} {
				if got, _, err := at.try(ctx, attempt{protocol: protocol, to: cell{protocol: protocol}.to(g.target)}); err != nil || got.open() != want {
					failures = append(failures, fmt.Errorf("%s: %s, open should be %v: %v", protocol, got, want, err))
				}
			}
		}
		return errors.Join(failures...)
	})
	return g
}

// watch tries all the time until the function it returns is called, which fails
// the test for what should not have been. Allowed requests are only counted if
// they may not fail meanwhile.
func (g *guarded) watch(t *testing.T, allowed bool) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{}, 8)
	loop := func(do func()) {
		go func() {
			defer func() { done <- struct{}{} }()
			for ctx.Err() == nil {
				do()
			}
		}()
	}
	loops := 0
	// Datagrams of a hundred a second, each of which may be answered later.
	loops++
	go func() {
		defer func() { done <- struct{}{} }()
		conn, err := g.asStranger.dial(ctx, "udp", cell{protocol: "udp"}.to(g.target).String())
		if err != nil {
			note(g.errors, err.Error())
			return
		}
		defer conn.Close()
		buffer := make([]byte, 1500)
		for ctx.Err() == nil {
			_, _ = conn.Write([]byte("hello"))
			g.tries.Add(1)
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			if n, err := conn.Read(buffer); err == nil {
				note(g.breaches, fmt.Sprintf("%s: UDP is answered: %q", time.Now().Format(time.TimeOnly), buffer[:n]))
			}
		}
	}()
	for _, protocol := range []string{"tcp", "http", "tcp"} {
		loops++
		loop(func() {
			a := attempt{protocol: protocol, to: cell{protocol: protocol, v6: protocol == "http"}.to(g.target)}
			got, said, _ := g.asStranger.try(ctx, a)
			g.tries.Add(1)
			if got.open() {
				note(g.breaches, fmt.Sprintf("%s: %s is answered: %q", time.Now().Format(time.TimeOnly), protocol, said.body))
			}
		})
	}
	if allowed {
		loops++
		loop(func() {
			long, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			got, err := g.asFriend.http(long, attempt{to: cell{protocol: "http"}.to(g.target)})
			if ctx.Err() != nil {
				return
			}
			if err != nil || got.status != 200 {
				note(g.errors, fmt.Sprintf("%s: friend: %d %s %v", time.Now().Format(time.TimeOnly), got.status, got.body, err))
				return
			}
			g.replies.Add(1)
		})
	}
	return func() {
		t.Helper()
		cancel()
		for range loops {
			<-done
		}
		t.Logf("%d denied attempts, %d allowed requests", g.tries.Load(), g.replies.Load())
		if g.tries.Load() == 0 || allowed && g.replies.Load() == 0 {
			t.Error("nothing was tried")
		}
		for _, c := range []chan string{g.breaches, g.errors} {
			for len(c) > 0 {
				t.Error(<-c)
			}
		}
	}
}

// note keeps the first few.
func note(c chan string, text string) {
	select {
	case c <- text:
	default:
	}
}

// kill ends a container's process as the kernel's out-of-memory killer does.
func kill(p *corev1.Pod, suffix string) error {
	all, err := processes(string(p.UID))
	if err != nil {
		return err
	}
	for _, x := range all {
		if strings.Contains(x.command, suffix) {
			return syscall.Kill(x.pid, syscall.SIGKILL)
		}
	}
	return fmt.Errorf("no process %q in %s: %v", suffix, p.Name, all)
}

// recovers waits until a component's pods are all ready, and one more restart of
// the container is counted.
func (w *world) recovers(t *testing.T, component, container string, before int32) {
	t.Helper()
	start := time.Now()
	within(t, 60*time.Second, component+" is back", func(ctx context.Context) error {
		pods, err := w.componentPods(ctx, component)
		if err != nil {
			return err
		}
		var n int32
		for _, p := range pods {
			if !ready(&p) {
				return fmt.Errorf("%s: %s", p.Name, waiting(&p))
			}
			n += restartsOf(&p, container)
		}
		if n <= before {
			return fmt.Errorf("%d restarts, as before", n)
		}
		return nil
	})
	t.Logf("%s was back after %s", component, time.Since(start).Round(100*time.Millisecond))
}

func restartsOf(p *corev1.Pod, container string) int32 {
	for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		if c.Name == container {
			return c.RestartCount
		}
	}
	return 0
}

// TestKilledComponentsLeaveNoWindow kills each component of the mesh.
func TestKilledComponentsLeaveNoWindow(t *testing.T) {
	w := alone(t)
	g := w.guard(t, "kill")
	for _, test := range []struct{ component, container, process string }{
		{"hauberk-control", "control", "hauberk-control"},
		{"hauberk-injector", "injector", "hauberk-injector"},
		{"hauberk-node", "node", "hauberk-node run"},
	} {
		t.Run(test.component, func(t *testing.T) {
			end := g.watch(t, true)
			pods := must[[]corev1.Pod](t)(w.componentPods(t.Context(), test.component))
			var before int32
			for _, p := range pods {
				before += restartsOf(&p, test.container)
			}
			for _, p := range pods {
				check(t, kill(&p, test.process))
			}
			w.recovers(t, test.component, test.container, before)
			end()
		})
	}
	t.Run("ten agents, one after another", func(t *testing.T) {
		// Where the kernel has no WireGuard, the tunnel's device goes with the pod:
		// what is allowed between nodes may wait for the next one.
		end := g.watch(t, false)
		for range 10 {
			for _, p := range must[[]corev1.Pod](t)(w.componentPods(t.Context(), "hauberk-node")) {
				if p.Spec.NodeName != g.target.Spec.NodeName {
					continue
				}
				// A pod that is deleted at once is killed and replaced without the kubelet's
				// pause between restarts.
				check(t, kill(&p, "hauberk-node run"))
				check(t, w.client.CoreV1().Pods(system).Delete(t.Context(), p.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}))
				within(t, 60*time.Second, "another agent runs", func(ctx context.Context) error {
					now, err := w.componentPods(ctx, "hauberk-node")
					if err != nil {
						return err
					}
					for _, n := range now {
						if n.Spec.NodeName == p.Spec.NodeName && n.UID != p.UID && ready(&n) {
							return nil
						}
					}
					return errors.New("none")
				})
			}
		}
		end()
		w.agentsReady(t)
	})
	t.Run("sidecar", func(t *testing.T) {
		end := g.watch(t, false)
		check(t, kill(g.target.Pod, "hauberk-proxy sidecar"))
		start := time.Now()
		within(t, 30*time.Second, "the server answers through its sidecar", func(ctx context.Context) error {
			p, err := g.client.CoreV1().Pods(g.name).Get(ctx, g.target.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if restartsOf(p, "hauberk-proxy") == 0 {
				return errors.New("the sidecar was not restarted yet")
			}
			got, _, err := g.asFriend.try(ctx, attempt{protocol: "http", to: cell{protocol: "http"}.to(g.target)})
			if err != nil || !got.open() {
				return fmt.Errorf("%s %v", got, err)
			}
			return nil
		})
		t.Logf("it was back after %s", time.Since(start).Round(100*time.Millisecond))
		end()
	})
}

// TestWithoutControlPlaneAllGoesOnAndNewPodsWait takes the control plane away.
func TestWithoutControlPlaneAllGoesOnAndNewPodsWait(t *testing.T) {
	w := alone(t)
	g := w.guard(t, "headless")
	t.Cleanup(func() {
		ctx, cancel := afterwards(t)
		defer cancel()
		w.scale(ctx, t, "hauberk-control", 2)
	})
	end := g.watch(t, true)
	w.scale(t.Context(), t, "hauberk-control", 0)
	for name, changes := range map[string][]change{"late-meshed": nil, "late-plain": {labelled("hauberk.dev/inject", "disabled")}} {
		must[*corev1.Pod](t)(g.create(t.Context(), server(name, append(changes, on("node1"))...)))
	}
	within(t, 90*time.Second, "the kubelet tells why new pods wait", func(ctx context.Context) error {
		for _, name := range []string{"late-meshed", "late-plain"} {
			p, err := g.client.CoreV1().Pods(g.name).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			for _, c := range p.Status.ContainerStatuses {
				if c.State.Running != nil {
					t.Errorf("%s: its container %s runs without policy", name, c.Name)
				}
			}
			events, err := g.client.CoreV1().Events(g.name).List(ctx, metav1.ListOptions{FieldSelector: "reason=FailedCreatePodSandBox,involvedObject.name=" + name})
			if err != nil {
				return err
			}
			if len(events.Items) == 0 {
				return fmt.Errorf("no event of %s", name)
			}
		}
		return nil
	})
	w.scale(t.Context(), t, "hauberk-control", 2)
	for _, name := range []string{"late-meshed", "late-plain"} {
		if _, err := g.ready(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	end()
	// What is changed now takes effect.
	check(t, g.apply(t.Context(), g.name, networkPolicy+"  {podSelector: {matchLabels: {app: target}}, policyTypes: [Ingress]}"))
	within(t, 20*time.Second, "a new policy holds", func(ctx context.Context) error {
		got, _, err := g.asFriend.try(ctx, attempt{protocol: "http", to: cell{protocol: "http"}.to(g.target)})
		if err != nil || got.open() {
			return fmt.Errorf("%s %v", got, err)
		}
		return nil
	})
}

// TestWithoutAPIServerAllGoesOn kills the API server and starts it again.
func TestWithoutAPIServerAllGoesOn(t *testing.T) {
	w := alone(t)
	g := w.guard(t, "noapi")
	t.Cleanup(func() {
		ctx, cancel := afterwards(t)
		defer cancel()
		check(t, w.ClusterUp(ctx, "2"))
	})
	var noted struct {
		PID int `json:"pid"`
	}
	check(t, json.Unmarshal(must[[]byte](t)(os.ReadFile("/var/lib/hauberk-cluster/pids/kube-apiserver.json")), &noted))
	name := string(must[[]byte](t)(os.ReadFile(fmt.Sprintf("/proc/%d/comm", noted.PID))))
	if !strings.HasPrefix(name, "kube-apiserver") {
		t.Fatalf("process %d is %q and not the API server", noted.PID, name)
	}
	end := g.watch(t, true)
	check(t, syscall.Kill(noted.PID, syscall.SIGKILL))
	// Long enough that watches break and are tried again.
	tried := g.replies.Load()
	within(t, 60*time.Second, "some hundred requests pass without it", func(ctx context.Context) error {
		if n := g.replies.Load() - tried; n < 300 {
			return fmt.Errorf("%d requests", n)
		}
		return nil
	})
	if _, err := w.client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); err == nil {
		t.Error("the API server answers: it was not killed")
	}
	check(t, w.ClusterUp(t.Context(), "2"))
	within(t, 60*time.Second, "a new pod starts and is policed", func(ctx context.Context) error {
		_, err := w.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		return err
	})
	late := g.run(server("late", on("node2")))[0]
	got, _, err := g.asStranger.try(t.Context(), attempt{protocol: "http", to: netip.AddrPortFrom(late.v4, httpPort)})
	if err != nil || !got.open() {
		t.Errorf("the late pod: %s %v", got, err)
	}
	end()
}
