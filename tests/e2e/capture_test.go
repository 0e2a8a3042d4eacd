package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const strict = "apiVersion: hauberk.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: all}\nspec: {mtls: {mode: STRICT}}"

func TestServiceTrafficOfBothFamiliesGoesThroughTheSidecars(t *testing.T) {
	w := together(t)
	s := w.meshed(t, "cap")
	s.accounts("caller")
	check(t, s.apply(t.Context(), s.name, strict))
	service := s.service("target", map[string]string{"app": "target"})
	if len(service.Spec.ClusterIPs) != 2 {
		t.Fatalf("the Service has the addresses %v, want one of each family", service.Spec.ClusterIPs)
	}
	made := s.run(server("target", on("node1")), client("caller", as("caller"), on("node2")))
	target, at := made[0], must[place](t)(made[1].place())
	for i, address := range service.Spec.ClusterIPs {
		path := fmt.Sprintf("/family-%d", i)
		to := netip.AddrPortFrom(netip.MustParseAddr(address), 80)
		within(t, 10*time.Second, "the Service answers at "+address, func(ctx context.Context) error {
			got, said, err := at.try(ctx, attempt{protocol: "http", to: to, path: path})
			if err != nil || !got.open() {
				return fmt.Errorf("%s %s %v", got, said.body, err)
			}
			return nil
		})
		within(t, 10*time.Second, "the server's sidecar tells who asked", func(ctx context.Context) error {
			log, err := s.accessLog(ctx, target.Pod)
			if err != nil {
				return err
			}
			if from(log, "caller", path) == 0 {
				return fmt.Errorf("no request %s among %d", path, len(log))
			}
			return nil
		})
		// Datagrams are not the sidecar's: the server sees the client's own address.
		to = netip.AddrPortFrom(to.Addr(), udpPort)
		got, said, err := at.try(t.Context(), attempt{protocol: "udp", to: to})
		if err != nil || !got.open() || !strings.Contains(said.body, made[1].v4.String()) && !strings.Contains(said.body, made[1].v6.String()) {
			t.Errorf("UDP to %s: %s %q %v, want the address of the client in the answer", to, got, said.body, err)
		}
	}
}

func TestExcludedPortsAndAddressesPassBesideTheSidecar(t *testing.T) {
	w := together(t)
	s := w.meshed(t, "cap-ex")
	check(t, s.apply(t.Context(), s.name, strict))
	made := s.run(server("target"), server("door", annotated("hauberk.dev/exclude-inbound-ports", fmt.Sprint(tcpPort))))
	target, door := made[0], made[1]
	clients := s.run(
		client("all"),
		client("port", annotated("hauberk.dev/exclude-outbound-ports", fmt.Sprint(tcpPort))),
		client("cidr", annotated("hauberk.dev/exclude-outbound-cidrs", target.v4.String()+"/32,"+target.v6.String()+"/128")),
		client("plain", labelled("hauberk.dev/inject", "disabled")),
	)
	// Under STRICT what passes beside the client's sidecar is refused by the server's,
	// and what passes beside the server's is answered to plain clients.
	for _, test := range []struct {
		from               *running
		to                 *running
		httpOpen, echoOpen bool
	}{
		{clients[0], target, true, true},
		{clients[1], target, true, false},
		{clients[2], target, false, false},
		{clients[2], door, true, true},
		{clients[3], target, false, false},
		{clients[3], door, false, true},
	} {
		t.Run(test.from.Name+" to "+test.to.Name, func(t *testing.T) {
			at := must[place](t)(test.from.place())
			for _, v6 := range []bool{false, true} {
				for protocol, want := range map[string]bool{"http": test.httpOpen, "tcp": test.echoOpen} {
					within(t, 15*time.Second, fmt.Sprintf("%s, IPv6 %v", protocol, v6), func(ctx context.Context) error {
						got, _, err := at.try(ctx, attempt{protocol: protocol, to: cell{protocol: protocol, v6: v6}.to(test.to)})
						if err != nil || got.open() != want {
							return fmt.Errorf("%s %v, and open should be %v", got, err, want)
						}
						return nil
					})
				}
			}
		})
	}
}

// attachment is what the container runtime keeps of a pod's network.
type attachment struct {
	ContainerID string          `json:"containerId"`
	Config      string          `json:"config"`
	IfName      string          `json:"ifName"`
	Args        [][2]string     `json:"cniArgs"`
	Result      json.RawMessage `json:"result"`
}

// attachment finds a pod's.
func (w *world) attachment(ctx context.Context, p *running) (*attachment, error) {
	// The node's shell expands the pattern.
	got, err := w.OnNode(ctx, p.Spec.NodeName, "/bin/sh", "-c", "grep -l "+string(p.UID)+" /var/lib/cni/results/*-eth0 | head -1 | xargs cat")
	if err != nil {
		return nil, err
	}
	a := &attachment{}
	if err := json.Unmarshal([]byte(got.Out), a); err != nil {
		return nil, fmt.Errorf("what the runtime keeps of pod %s: %v: %s", p.Name, err, got.Err)
	}
	return a, nil
}

// cni runs our plugin on a node as the runtime does.
func (w *world) cni(ctx context.Context, p *running, verb string) (code int, out string, err error) {
	a, err := w.attachment(ctx, p)
	if err != nil {
		return 0, "", err
	}
	list, err := base64.StdEncoding.DecodeString(a.Config)
	if err != nil {
		return 0, "", err
	}
	var conf struct {
		CNIVersion string           `json:"cniVersion"`
		Name       string           `json:"name"`
		Plugins    []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal(list, &conf); err != nil {
		return 0, "", err
	}
	last := conf.Plugins[len(conf.Plugins)-1]
	if last["type"] != "hauberk-cni" {
		return 0, "", fmt.Errorf("the last plugin of the chain is %v", last["type"])
	}
	last["cniVersion"], last["name"], last["prevResult"] = conf.CNIVersion, conf.Name, a.Result
	stdin, err := json.Marshal(last)
	if err != nil {
		return 0, "", err
	}
	var result struct {
		Interfaces []struct {
			Name    string `json:"name"`
			Sandbox string `json:"sandbox"`
		} `json:"interfaces"`
	}
	if err := json.Unmarshal(a.Result, &result); err != nil {
		return 0, "", err
	}
	sandbox := ""
	for _, i := range result.Interfaces {
		if i.Name == a.IfName && i.Sandbox != "" {
			sandbox = i.Sandbox
		}
	}
	var args []string
	for _, kv := range a.Args {
		args = append(args, kv[0]+"="+kv[1])
	}
	cmd := w.NodeCommand(ctx, p.Spec.NodeName, "env", "CNI_COMMAND="+verb, "CNI_CONTAINERID="+a.ContainerID, "CNI_NETNS="+sandbox,
		"CNI_IFNAME="+a.IfName, "CNI_ARGS="+strings.Join(args, ";"), "CNI_PATH=/opt/cni/bin", "/opt/cni/bin/hauberk-cni")
	cmd.Stdin = bytes.NewReader(stdin)
	text, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), string(text), nil
	}
	return 0, string(text), err
}

func TestCNIChecksAPodAndForgetsItWithoutATrace(t *testing.T) {
	w := together(t)
	s := w.meshed(t, "cni")
	check(t, s.apply(t.Context(), s.name, networkPolicy+"  {podSelector: {}, ingress: [{ports: [{port: 8080}]}]}"))
	for _, name := range []string{"meshed", "plain"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			var changes []change
			if name == "plain" {
				changes = append(changes, labelled("hauberk.dev/inject", "disabled"))
			}
			p := s.run(client(name, changes...))[0]
			code, out, err := w.cni(t.Context(), p, "CHECK")
			check(t, err)
			if code != 0 {
				t.Errorf("CHECK of a sound pod: exit code %d: %s", code, out)
			}
			if name == "meshed" {
				// Somebody takes the redirection away.
				all := must[[]process](t)(processes(string(p.UID)))
				said, err := exec.CommandContext(t.Context(), "nsenter", "--net=/proc/"+strconv.Itoa(all[0].pid)+"/ns/net", "iptables", "-t", "nat", "-F", "HAUBERK_OUTPUT").CombinedOutput()
				if err != nil {
					t.Fatalf("flush the redirection: %v: %s", err, said)
				}
				code, _, err = w.cni(t.Context(), p, "CHECK")
				check(t, err)
				if code == 0 {
					t.Error("CHECK of a pod without redirection ends with 0")
				}
			}
			addresses := func(ctx context.Context) (bool, error) {
				got, err := w.OnNode(ctx, p.Spec.NodeName, "nft", "list", "table", "inet", "hauberk")
				if err == nil && got.Code != 0 {
					err = errors.New(got.Err)
				}
				fields := strings.FieldsFunc(got.Out, func(r rune) bool { return !strings.ContainsRune("0123456789abcdef.:", r) })
				for _, f := range fields {
					if f == p.v4.String() || f == p.v6.String() {
						return true, err
					}
				}
				return false, err
			}
			if there := must[bool](t)(addresses(t.Context())); !there {
				t.Error("the pod's addresses are not in the kernel's table: the test looks in the wrong place")
			}
			a := must[*attachment](t)(w.attachment(t.Context(), p))
			check(t, s.client.CoreV1().Pods(s.name).Delete(t.Context(), p.Name, metav1.DeleteOptions{}))
			within(t, 60*time.Second, "nothing of the pod is left on its node", func(ctx context.Context) error {
				there, err := addresses(ctx)
				if err != nil {
					return err
				}
				if there {
					return errors.New("its addresses are in the kernel's table")
				}
				got, err := w.OnNode(ctx, p.Spec.NodeName, "/bin/sh", "-c", "grep -l "+a.ContainerID+" -r /run/hauberk/pods || true")
				if err != nil || got.Out != "" {
					return fmt.Errorf("the agent keeps %q of it: %v", got.Out, err)
				}
				return nil
			})
		})
	}
}

// TestOverwrittenChainIsRepairedInPlace disturbs node2: pods that start in the
// moment before the repair are not captured.
func TestOverwrittenChainIsRepairedInPlace(t *testing.T) {
	w := alone(t)
	const node, path = "node2", "/etc/cni/net.d/10-hauberk-test.conflist"
	read := func(ctx context.Context) (map[string]any, error) {
		got, err := w.OnNode(ctx, node, "cat", path)
		if err != nil {
			return nil, err
		}
		var list map[string]any
		return list, json.Unmarshal([]byte(got.Out), &list)
	}
	kinds := func(list map[string]any) string {
		var out []string
		plugins, _ := list["plugins"].([]any)
		for _, p := range plugins {
			out = append(out, fmt.Sprint(p.(map[string]any)["type"]))
		}
		return strings.Join(out, " ")
	}
	before := must[map[string]any](t)(read(t.Context()))
	if got := kinds(before); got != "ptp-nodad portmap hauberk-cni" {
		t.Fatalf("the chain is %q", got)
	}
	// Another tool writes the file as it knows it, with an option of its own.
	plugins := before["plugins"].([]any)[:2]
	plugins[1].(map[string]any)["conditionsV4"] = []string{"-m", "comment", "--comment", "somebody else's"}
	theirs := map[string]any{"cniVersion": before["cniVersion"], "name": before["name"], "plugins": plugins, "disableCheck": false}
	text := must[[]byte](t)(json.MarshalIndent(theirs, "", "  "))
	cmd := w.NodeCommand(t.Context(), node, "/bin/sh", "-c", "cat > "+path+".new && mv "+path+".new "+path)
	cmd.Stdin = bytes.NewReader(text)
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("overwrite the chain: %v: %s", err, said)
	}
	within(t, 10*time.Second, "our entry is back and theirs are as they were", func(ctx context.Context) error {
		now, err := read(ctx)
		if err != nil {
			return err
		}
		if got := kinds(now); got != "ptp-nodad portmap hauberk-cni" {
			return fmt.Errorf("the chain is %q", got)
		}
		if got := mustJSON(now["plugins"].([]any)[1]); !strings.Contains(got, "somebody else's") {
			return fmt.Errorf("their option is lost: %s", got)
		}
		if _, ok := now["disableCheck"]; !ok {
			return errors.New("their disableCheck is lost")
		}
		return nil
	})
	// A pod that starts now is captured.
	s := w.meshed(t, "chain")
	check(t, s.apply(t.Context(), s.name, strict))
	// The option was only for show, and the plugin of that chain would take it.
	delete(plugins[1].(map[string]any), "conditionsV4")
	delete(theirs, "disableCheck")
	text = must[[]byte](t)(json.MarshalIndent(theirs, "", "  "))
	cmd = w.NodeCommand(t.Context(), node, "/bin/sh", "-c", "cat > "+path)
	cmd.Stdin = bytes.NewReader(text)
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("put the chain back: %v: %s", err, said)
	}
	within(t, 10*time.Second, "our entry is back again", func(ctx context.Context) error {
		now, err := read(ctx)
		if err == nil && kinds(now) != "ptp-nodad portmap hauberk-cni" {
			err = fmt.Errorf("the chain is %q", kinds(now))
		}
		return err
	})
	made := s.run(server("target", on(node)), client("one", on(node)))
	at := must[place](t)(made[1].place())
	if got, _, err := at.try(t.Context(), attempt{protocol: "http", to: netip.AddrPortFrom(made[0].v4, httpPort)}); err != nil || !got.open() {
		t.Errorf("between pods of the repaired chain: %s %v", got, err)
	}
}

// TestWithoutTheAgentPodsWait disturbs the cluster: it takes the node agents away.
func TestWithoutTheAgentPodsWait(t *testing.T) {
	w := alone(t)
	s := w.meshed(t, "agentless")
	// On one node: where the kernel has no WireGuard, the tunnel's device is a process
	// of the agent's pod, and between nodes all is closed without it.
	made := s.run(server("target", on("node1")), client("friend", on("node1")), client("stranger", on("node1")))
	check(t, s.apply(t.Context(), s.name, networkPolicy+"  {podSelector: {matchLabels: {app: target}}, ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]}"))
	friend, stranger := must[place](t)(made[1].place()), must[place](t)(made[2].place())
	look := func(ctx context.Context) error {
		var failures []error
		for _, protocol := range []string{"tcp", "http", "udp", "ping"} {
			to := cell{protocol: protocol}.to(made[0])
			if got, _, err := friend.try(ctx, attempt{protocol: protocol, to: to}); err != nil || !got.open() {
				failures = append(failures, fmt.Errorf("friend %s: %s %v", protocol, got, err))
			}
			if got, _, err := stranger.try(ctx, attempt{protocol: protocol, to: to}); err != nil || got.open() {
				failures = append(failures, fmt.Errorf("stranger %s: %s %v", protocol, got, err))
			}
		}
		return errors.Join(failures...)
	}
	within(t, 10*time.Second, "the policy is in force", look)

	sets := w.client.AppsV1().DaemonSets(system)
	gone := func(patch string) {
		t.Helper()
		ctx, cancel := afterwards(t)
		defer cancel()
		must[*appsv1.DaemonSet](t)(sets.Patch(ctx, "hauberk-node", types.MergePatchType, []byte(patch), metav1.PatchOptions{}))
	}
	back := func() { gone(`{"spec":{"template":{"spec":{"nodeSelector":{"e2e-nowhere":null}}}}}`) }
	t.Cleanup(back)
	gone(`{"spec":{"template":{"spec":{"nodeSelector":{"e2e-nowhere":"true"}}}}}`)
	within(t, 60*time.Second, "the node agents are gone", func(ctx context.Context) error {
		pods, err := w.componentPods(ctx, "hauberk-node")
		if err == nil && len(pods) > 0 {
			err = fmt.Errorf("%d are there", len(pods))
		}
		return err
	})
	for name, changes := range map[string][]change{"late-meshed": nil, "late-plain": {labelled("hauberk.dev/inject", "disabled")}} {
		must[*corev1.Pod](t)(s.create(t.Context(), client(name, changes...)))
	}
	within(t, 60*time.Second, "the kubelet tells why the pods wait", func(ctx context.Context) error {
		for _, name := range []string{"late-meshed", "late-plain"} {
			events, err := s.client.CoreV1().Events(s.name).List(ctx, metav1.ListOptions{FieldSelector: "reason=FailedCreatePodSandBox,involvedObject.name=" + name})
			if err != nil {
				return err
			}
			if len(events.Items) == 0 || !strings.Contains(events.Items[0].Message, "hauberk") {
				return fmt.Errorf("%s: %d events", name, len(events.Items))
			}
			p, err := s.client.CoreV1().Pods(s.name).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if p.Status.Phase != corev1.PodPending || len(p.Status.PodIPs) > 0 {
				t.Errorf("%s is %s with addresses %v while its node's agent is away", name, p.Status.Phase, p.Status.PodIPs)
			}
		}
		return nil
	})
	if err := look(t.Context()); err != nil {
		t.Errorf("while the agents are away: %v", err)
	}
	back()
	for _, name := range []string{"late-meshed", "late-plain"} {
		if _, err := s.ready(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	if err := look(t.Context()); err != nil {
		t.Errorf("with the agents back: %v", err)
	}
	w.agentsReady(t)
}

// agentsReady waits until every node has a ready agent.
func (w *world) agentsReady(t *testing.T) {
	t.Helper()
	ctx, cancel := afterwards(t)
	defer cancel()
	check(t, eventually(ctx, 90*time.Second, "every node agent is ready", func(ctx context.Context) error {
		d, err := w.client.AppsV1().DaemonSets(system).Get(ctx, "hauberk-node", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if st := d.Status; st.ObservedGeneration < d.Generation || st.DesiredNumberScheduled < 2 || st.NumberReady != st.DesiredNumberScheduled || st.UpdatedNumberScheduled != st.DesiredNumberScheduled {
			return fmt.Errorf("%d of %d", st.NumberReady, st.DesiredNumberScheduled)
		}
		return nil
	}))
}
