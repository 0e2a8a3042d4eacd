package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// identities are what a restart changes: pod and container IDs, of the data plane
// and of a meshed application.
func (s *space) identities(ctx context.Context) (map[string]string, error) {
	out := map[string]string{}
	own, err := s.client.CoreV1().Pods(s.name).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	agents, err := s.componentPods(ctx, "hauberk-node")
	if err != nil {
		return nil, err
	}
	for _, p := range append(own.Items, agents...) {
		for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
			out[p.Name+"/"+c.Name] = c.ContainerID
		}
	}
	return out, nil
}

// TestInstallIsAnUpgradeAndUninstallLeavesNothing takes the mesh out of the
// cluster and puts it back.
func TestInstallIsAnUpgradeAndUninstallLeavesNothing(t *testing.T) {
	w := alone(t)
	// What the mesh was installed with is what it is put back with.
	t.Cleanup(func() {
		ctx, cancel := afterwards(t)
		defer cancel()
		if _, err := w.client.AppsV1().Deployments(system).Get(ctx, "hauberk-control", metav1.GetOptions{}); err != nil {
			check(t, w.Install(ctx))
		}
	})
	s := w.meshed(t, "install")
	made := s.run(server("target"), client("client"))
	at := must[place](t)(made[1].place())

	run := func(want int, args ...string) string {
		t.Helper()
		start := time.Now()
		got, err := w.Hauberk(t.Context(), args...)
		check(t, err)
		t.Logf("hauberk %s: exit code %d in %s", strings.Join(args, " "), got.Code, time.Since(start).Round(100*time.Millisecond))
		if got.Code != want {
			t.Fatalf("hauberk %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got.Code, want, got.Out, got.Err)
		}
		return got.Out + got.Err
	}
	run(0, "check")
	if out := run(0, "status"); !strings.Contains(out, "node1") && !strings.Contains(out, "hauberk-control") {
		t.Errorf("hauberk status: %s", out)
	}

	t.Run("install again restarts nothing of the data plane", func(t *testing.T) {
		before := must[map[string]string](t)(s.identities(t.Context()))
		run(0, "install")
		after := must[map[string]string](t)(s.identities(t.Context()))
		for name, id := range before {
			if after[name] != id {
				t.Errorf("%s was restarted", name)
			}
		}
	})

	run(0, "uninstall")
	t.Run("uninstall leaves nothing in the API", func(t *testing.T) {
		ctx := t.Context()
		if _, err := w.client.CoreV1().Namespaces().Get(ctx, system, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("namespace %s: %v", system, err)
		}
		groups := must[*metav1.APIGroupList](t)(w.client.Discovery().ServerGroups())
		for _, g := range groups.Groups {
			if g.Name == "hauberk.dev" {
				t.Error("the API group hauberk.dev is served")
			}
		}
		for _, kind := range []string{
			"admissionregistration.k8s.io/v1 MutatingWebhookConfiguration", "admissionregistration.k8s.io/v1 ValidatingAdmissionPolicy",
			"admissionregistration.k8s.io/v1 ValidatingAdmissionPolicyBinding", "rbac.authorization.k8s.io/v1 ClusterRole",
			"rbac.authorization.k8s.io/v1 ClusterRoleBinding", "apiextensions.k8s.io/v1 CustomResourceDefinition", "scheduling.k8s.io/v1 PriorityClass",
		} {
			version, name, _ := strings.Cut(kind, " ")
			o := &unstructured.Unstructured{}
			o.SetAPIVersion(version)
			o.SetKind(name)
			r, err := w.resource(o, "")
			check(t, err)
			list, err := r.List(ctx, metav1.ListOptions{})
			check(t, err)
			for _, o := range list.Items {
				// hauberk-test is the local cluster's own.
				if strings.Contains(o.GetName(), "hauberk") && !strings.HasPrefix(o.GetName(), "hauberk-test:") {
					t.Errorf("%s %s is there", name, o.GetName())
				}
			}
		}
	})
	for _, node := range []string{"node1", "node2"} {
		t.Run("uninstall leaves nothing on "+node, func(t *testing.T) {
			for _, look := range []struct {
				what    string
				command string
			}{
				{"tables of nftables", "nft list tables | grep hauberk || true"},
				{"links", "ip -o link | grep hauberk || true"},
				{"routing rules", "ip rule | grep -w 5187; ip -6 rule | grep -w 5187; ip route show table 5187 2>/dev/null; ip -6 route show table 5187 2>/dev/null; true"},
				{"chain entries", "grep -l hauberk-cni /etc/cni/net.d/* || true"},
				{"the plugin", "ls /opt/cni/bin | grep hauberk || true"},
				{"the agent's files", "ls /run/hauberk 2>/dev/null | grep -v '^agent.lock$' | while read f; do ls -d /run/hauberk/$f/* 2>/dev/null || test -d /run/hauberk/$f || echo $f; done"},
				{"redirection in pods", "for n in /run/netns/*; do nsenter --net=$n iptables-save | grep HAUBERK; nsenter --net=$n ip6tables-save | grep HAUBERK; done; true"},
			} {
				got, err := w.OnNode(t.Context(), node, "/bin/sh", "-c", look.command)
				check(t, err)
				if strings.TrimSpace(got.Out) != "" {
					t.Errorf("%s: %s", look.what, got.Out)
				}
			}
		})
	}
	t.Run("pods start and reach each other without the mesh", func(t *testing.T) {
		s := s.in(t)
		late := s.run(server("late", on("node1")), client("late-client", on("node2")))
		if sidecar(late[0].Pod) != nil {
			t.Error("a pod got a sidecar")
		}
		from := must[place](t)(late[1].place())
		for _, c := range []cell{{protocol: "tcp"}, {protocol: "udp"}, {protocol: "http", v6: true}, {protocol: "ping"}} {
			if got, _, err := from.try(t.Context(), attempt{protocol: c.protocol, to: c.to(late[0])}); err != nil || !got.open() {
				t.Errorf("%s: %s %v", c, got, err)
			}
		}
		if got, _, err := at.try(t.Context(), attempt{protocol: "http", to: netip.AddrPortFrom(made[0].v4, httpPort)}); err != nil || !got.open() {
			t.Logf("pods that keep their sidecars: %s %v", got, err)
		}
	})
	t.Run("uninstall again finds nothing and is content", func(t *testing.T) {
		if out := run(0, "uninstall"); !strings.Contains(out, "nothing is installed") {
			t.Error(out)
		}
	})
	t.Run("install once more", func(t *testing.T) {
		s := s.in(t)
		check(t, w.Install(t.Context()))
		// Pods that ran meanwhile are told of, and are well when they are restarted.
		if out := run(79, "check"); !strings.Contains(out, s.name+"/target") || !strings.Contains(out, "restart them") {
			t.Errorf("hauberk check does not tell of pods that are not captured: %s", out)
		}
		check(t, s.client.CoreV1().Pods(s.name).DeleteCollection(t.Context(), metav1.DeleteOptions{GracePeriodSeconds: new(int64(1))}, metav1.ListOptions{}))
		meshed := must[*corev1.NamespaceList](t)(w.client.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{LabelSelector: "hauberk.dev/inject=enabled"}))
		for _, ns := range meshed.Items {
			must[string](t)(w.Kubectl(t.Context(), "-n", ns.Name, "rollout", "restart", "deployment"))
		}
		run(0, "check", "--wait", "--timeout", "90s")
		check(t, s.apply(t.Context(), s.name, strict))
		again := s.run(server("again"), client("again-client"))
		from := must[place](t)(again[1].place())
		within(t, 10*time.Second, "mTLS between new pods", func(ctx context.Context) error {
			if sidecar(again[0].Pod) == nil {
				return errors.New("no sidecar")
			}
			got, _, err := from.try(ctx, attempt{protocol: "http", to: netip.AddrPortFrom(again[0].v4, httpPort)})
			if err != nil || !got.open() {
				return fmt.Errorf("%s %w", got, err)
			}
			return nil
		})
	})
}
