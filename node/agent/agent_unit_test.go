package agent

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/discovery"
	"github.com/hauberk-mesh/hauberk/internal/wire"
	"github.com/hauberk-mesh/hauberk/node/cniserver"
	"github.com/hauberk-mesh/hauberk/node/firewall"
	"github.com/hauberk-mesh/hauberk/node/redirect"
	"github.com/hauberk-mesh/hauberk/node/tunnel"
	"github.com/hauberk-mesh/hauberk/policy"
)

func TestConfig(t *testing.T) {
	good := map[string]string{"HAUBERK_NODE_NAME": "n", "HAUBERK_CONTROL_ADDRESS": "10.0.0.1:15012", "HAUBERK_TRUST_BUNDLE_FILE": "/a", "HAUBERK_TOKEN_FILE": "/b"}
	for _, c := range []struct {
		name string
		env  map[string]string
		args []string
		want []string // parts of the error; none for a good configuration
	}{
		{"from the environment", good, nil, nil},
		{"nothing", nil, nil, []string{"--node-name is required; set it or HAUBERK_NODE_NAME", "--control-address is required", "--trust-bundle is required", "--token-file is required"}},
		{"admin for everybody", good, []string{"--admin", "0.0.0.0:15000"}, []string{"not a loopback address"}},
		{"control address without a port", good, []string{"--control-address", "10.0.0.1"}, []string{"must be host:port"}},
		{"trust domain", good, []string{"--trust-domain", "Not One"}, []string{"--trust-domain"}},
		{"relative folder and level", good, []string{"--run-dir", "run", "--log-level", "loud"}, []string{`"run" is not an absolute path`, `"loud" is none of`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var config Config
			set := flag.NewFlagSet("test", flag.ContinueOnError)
			config.Flags(set, func(name string) string { return c.env[name] }, true)
			if err := set.Parse(c.args); err != nil {
				t.Fatal(err)
			}
			err := config.Validate()
			if (err == nil) != (len(c.want) == 0) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in %q", want, err)
				}
			}
		})
	}
	config := Config{Bootstrap: "kube-system,other"}
	for ns, want := range map[string]bool{"hauberk-system": true, "kube-system": true, "other": true, "bank": false, "": false} {
		if got := config.bootstrap(ns); got != want {
			t.Errorf("bootstrap(%q) = %v", ns, got)
		}
	}
}

func resourceWorkload(w *hauberkv1.Workload) *hauberkv1.Resource {
	return &hauberkv1.Resource{Name: "uid/" + w.GetUid(), Body: &hauberkv1.Resource_Workload{Workload: w}}
}

func resourcePolicy(set *policy.Set) *hauberkv1.Resource {
	return &hauberkv1.Resource{Name: set.ID, Body: &hauberkv1.Resource_PolicySet{PolicySet: wire.PolicySetToProto(set)}}
}

// withPeer is a policy set that names the members of a peer.
func withPeer(id, peerSet string) *policy.Set {
	return &policy.Set{ID: id, DefaultAction: policy.Allow, Ingress: []policy.Tier{{Name: "default", DefaultAction: policy.Deny, Policies: []policy.Policy{{
		Ref:   policy.Ref{Kind: "NetworkPolicy", Namespace: "bank", Name: "p"},
		Rules: []policy.Rule{{Name: "ingress[0]", Action: policy.Allow, Peers: []policy.Peer{{PeerSet: peerSet, Namespaces: []string{"bank"}}}}},
	}}}}}
}

func apply(t *testing.T, k *knowledge, u discovery.Update) {
	t.Helper()
	if err := k.Apply(u); err != nil {
		t.Fatal(err)
	}
}

const (
	tMesh     = hauberkv1.ResourceType_RESOURCE_TYPE_MESH
	tWorkload = hauberkv1.ResourceType_RESOURCE_TYPE_WORKLOAD
	tPolicy   = hauberkv1.ResourceType_RESOURCE_TYPE_POLICY_SET
	tPeers    = hauberkv1.ResourceType_RESOURCE_TYPE_PEER_SET
	tTunnel   = hauberkv1.ResourceType_RESOURCE_TYPE_TUNNEL_PEER
)

func TestKnowledgeTakesUpdatesWhole(t *testing.T) {
	good := resourceWorkload(&hauberkv1.Workload{Uid: "u1", Namespace: "bank", Name: "a", Addresses: []string{"10.0.0.1"}})
	for _, c := range []struct {
		name string
		t    hauberkv1.ResourceType
		bad  *hauberkv1.Resource
		want string
	}{
		{"workload's address", tWorkload, resourceWorkload(&hauberkv1.Workload{Uid: "u2", Addresses: []string{"10.0.0.256"}}), "addresses"},
		{"workload's port", tWorkload, resourceWorkload(&hauberkv1.Workload{Uid: "u2", NamedPorts: []*hauberkv1.NamedPort{{Name: "web", Port: 70000}}}), `"web" is 70000`},
		{"workload without uid", tWorkload, resourceWorkload(&hauberkv1.Workload{}), "no uid"},
		{"mesh", tMesh, &hauberkv1.Resource{Name: "mesh", Body: &hauberkv1.Resource_Mesh{Mesh: &hauberkv1.Mesh{PodCidrs: []string{"x"}}}}, "pod address ranges"},
		{"policy", tPolicy, &hauberkv1.Resource{Name: "p", Body: &hauberkv1.Resource_PolicySet{PolicySet: &hauberkv1.PolicySet{Id: "p", DefaultAction: 77}}}, "77"},
		{"peers", tPeers, &hauberkv1.Resource{Name: "s", Body: &hauberkv1.Resource_PeerSet{PeerSet: &hauberkv1.PeerSet{Id: "s", Members: []*hauberkv1.PeerMember{{Uid: "m", Addresses: []string{""}}}}}}, "addresses of pod m"},
		{"tunnel key", tTunnel, &hauberkv1.Resource{Name: "n", Body: &hauberkv1.Resource_TunnelPeer{TunnelPeer: &hauberkv1.TunnelPeer{Node: "n", PublicKey: []byte("short")}}}, "public key"},
		{"tunnel endpoint", tTunnel, &hauberkv1.Resource{Name: "n", Body: &hauberkv1.Resource_TunnelPeer{TunnelPeer: &hauberkv1.TunnelPeer{Node: "n", Endpoints: []string{"10.0.0.1"}}}}, "endpoint"},
		{"destination", tWorkload, &hauberkv1.Resource{Name: "d", Body: &hauberkv1.Resource_Destination{Destination: &hauberkv1.Destination{}}}, "does not know"},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newKnowledge()
			err := k.Apply(discovery.Update{Type: c.t, Resources: []*hauberkv1.Resource{good, c.bad}, Complete: true})
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.bad.GetName()) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if s, _ := k.snapshot(); len(s.workloads) != 0 || k.complete[c.t] {
				t.Errorf("a part of a rejected update was taken: %v", s.workloads)
			}
		})
	}
}

func TestWait(t *testing.T) {
	pod := resourceWorkload(&hauberkv1.Workload{Uid: "u1", Namespace: "bank", Name: "a", PolicySet: "p"})
	set := resourcePolicy(withPeer("p", "s"))
	peers := &hauberkv1.Resource{Name: "s", Body: &hauberkv1.Resource_PeerSet{PeerSet: &hauberkv1.PeerSet{Id: "s"}}}
	for _, c := range []struct {
		name  string
		tell  []discovery.Update
		takes time.Duration
		want  string // in the error
	}{
		{"nothing", nil, 10 * time.Second, "configuration has not arrived"},
		{"pod only", []discovery.Update{{Type: tWorkload, Resources: []*hauberkv1.Resource{pod}}}, 10 * time.Second, "configuration has not arrived"},
		{"pod and policy", []discovery.Update{{Type: tWorkload, Resources: []*hauberkv1.Resource{pod}}, {Type: tPolicy, Resources: []*hauberkv1.Resource{set}}}, time.Second + peerSetGrace, ""},
		{"all, one a second", []discovery.Update{{Type: tPolicy, Resources: []*hauberkv1.Resource{set}}, {Type: tPeers, Resources: []*hauberkv1.Resource{peers}}, {Type: tWorkload, Resources: []*hauberkv1.Resource{pod}}}, 2 * time.Second, ""},
		{"and gone again", []discovery.Update{{Type: tWorkload, Resources: []*hauberkv1.Resource{pod}}, {Type: tWorkload, Removed: []string{"uid/u1"}}}, 10 * time.Second, "configuration has not arrived"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKnowledge()
				go func() {
					for i, u := range c.tell {
						if i > 0 {
							time.Sleep(time.Second)
						}
						_ = k.Apply(u)
					}
				}()
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				start := time.Now()
				w, err := k.Wait(ctx, "u1")
				if took := time.Since(start); took != c.takes {
					t.Errorf("took %s, want %s", took, c.takes)
				}
				if c.want == "" && (err != nil || w.GetUid() != "u1") || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
					t.Errorf("got %v, %v, want %q", w, err, c.want)
				}
			})
		})
	}
}

// recorder is a firewall and a tunnel that write down what they are asked.
type recorder struct {
	calls []string
	state firewall.State
	added []firewall.Pod
	kept  []firewall.Pod
	freed []netip.Addr
	fail  error
}

func (r *recorder) Free(_ context.Context, addresses ...netip.Addr) error {
	r.freed = append(r.freed, addresses...)
	return nil
}

func (r *recorder) Restore(pods ...firewall.Pod) {
	r.calls, r.kept = append(r.calls, "restore"), pods
}

func (r *recorder) Apply(_ context.Context, s firewall.State) error {
	r.calls, r.state = append(r.calls, "apply"), s
	return r.fail
}

func (r *recorder) AddPod(_ context.Context, p firewall.Pod) error {
	r.calls, r.added = append(r.calls, "add"), append(r.added, p)
	return nil
}

func (r *recorder) RemovePod(context.Context, string) error {
	r.calls = append(r.calls, "remove")
	return nil
}

// tunnels is a tunnel that takes everything.
type tunnels struct{}

func (tunnels) Apply(context.Context, tunnel.State) error { return nil }

func TestEnforcer(t *testing.T) {
	attachments, err := cniserver.OpenAttachments(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr
	captured := cniserver.Attachment{ContainerID: "c1", UID: "u1", Namespace: "bank", Name: "a", Addresses: []netip.Addr{addr("10.0.0.1")},
		HostInterface: "veth1", Redirect: &redirect.Rules{ExcludeInboundPorts: []uint16{9000}}, Complete: true}
	stale := captured
	stale.ContainerID, stale.Complete, stale.Redirect = "c0", false, nil
	boot := cniserver.Attachment{ContainerID: "c2", UID: "u2", Namespace: "kube-system", Name: "dns", Addresses: []netip.Addr{addr("10.0.0.2")}, Bootstrap: true}
	for _, at := range []cniserver.Attachment{captured, stale} {
		if err := attachments.Put(at); err != nil {
			t.Fatal(err)
		}
	}
	r := &recorder{}
	k := newKnowledge()
	e := newEnforcer(slog.New(slog.DiscardHandler), "node1", k, attachments, r, tunnels{})

	// Nothing but bootstrap pods before the whole configuration, and the kernel
	// is not touched.
	soon, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := e.AddPod(soon, cniserver.Pod{Attachment: captured}); err == nil {
		t.Error("a pod was added before its node's configuration arrived")
	}
	if err := attachments.Put(boot); err != nil {
		t.Fatal(err)
	}
	if err := e.AddPod(t.Context(), cniserver.Pod{Attachment: boot}); err != nil {
		t.Error(err)
	}
	if err := e.RemovePod(t.Context(), "c1"); err != nil {
		t.Error(err)
	}
	if _, err := e.sync(t.Context()); err != nil {
		t.Error(err)
	}
	if r.calls != nil {
		t.Errorf("the kernel was touched: %v", r.calls)
	}
	same := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if diff := cmp.Diff(boot.Addresses, r.freed, same); diff != "" {
		t.Errorf("freed (-want +got):\n%s", diff)
	}

	open := &policy.Set{ID: "open", DefaultAction: policy.Allow}
	apply(t, k, discovery.Update{Type: tWorkload, Complete: true, Resources: []*hauberkv1.Resource{
		// The annotation that excluded 9000 is gone, and so is that of the
		// unattached pod: what counts is what CNI programmed.
		resourceWorkload(&hauberkv1.Workload{Uid: "u1", Namespace: "bank", Name: "a", Meshed: true, PolicySet: "open", Addresses: []string{"10.0.0.1"}}),
		resourceWorkload(&hauberkv1.Workload{Uid: "u3", Namespace: "bank", Name: "early", Meshed: true, PolicySet: "missing", Addresses: []string{"10.0.0.3"}}),
		resourceWorkload(&hauberkv1.Workload{Uid: "u4", Namespace: "bank", Name: "host", HostNetwork: true, PolicySet: "open", Addresses: []string{"192.0.2.1"}}),
	}})
	for _, rt := range []hauberkv1.ResourceType{tPeers, tTunnel} {
		apply(t, k, discovery.Update{Type: rt, Complete: true})
	}
	apply(t, k, discovery.Update{Type: tPolicy, Complete: true, Resources: []*hauberkv1.Resource{resourcePolicy(open)}})
	if s, err := e.sync(t.Context()); err != nil || s.complete || r.calls != nil {
		t.Fatalf("half a configuration was programmed: %v, %v", r.calls, err)
	}
	apply(t, k, discovery.Update{Type: tMesh, Complete: true, Resources: []*hauberkv1.Resource{{Name: "mesh", Body: &hauberkv1.Resource_Mesh{Mesh: &hauberkv1.Mesh{}}}}})

	r.fail = errors.New("nft says no")
	if _, err := e.sync(t.Context()); err == nil || e.ready() {
		t.Errorf("a failure was not told: %v", err)
	}
	r.fail, r.calls = nil, nil
	if _, err := e.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"restore", "apply"}, r.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	capture := firewall.Capture{ExcludeInboundPorts: []uint16{9000}}
	wantState := []firewall.Pod{
		{UID: "u1", Namespace: "bank", Name: "a", Addresses: captured.Addresses, Meshed: true, Capture: capture, PolicySet: open},
		{UID: "u3", Namespace: "bank", Name: "early", Addresses: []netip.Addr{addr("10.0.0.3")}},
	}
	if diff := cmp.Diff(wantState, r.state.Pods, same); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
	wantKept := []firewall.Pod{
		{UID: "u1", Namespace: "bank", Name: "a", ContainerID: "c0", HostInterface: "veth1", Addresses: captured.Addresses, PolicySet: open},
		{UID: "u1", Namespace: "bank", Name: "a", ContainerID: "c1", HostInterface: "veth1", Addresses: captured.Addresses, Meshed: true, Capture: capture, PolicySet: open},
		{UID: "u2", Namespace: "kube-system", Name: "dns", ContainerID: "c2", Addresses: boot.Addresses, Bootstrap: true},
	}
	if diff := cmp.Diff(wantKept, r.kept, same); diff != "" {
		t.Errorf("restored (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{"u1": "open"}, e.programmed()); diff != "" {
		t.Errorf("programmed (-want +got):\n%s", diff)
	}

	// From now on pods are added at once, after what is known was applied.
	r.calls = nil
	if err := e.AddPod(t.Context(), cniserver.Pod{Attachment: captured}); err != nil {
		t.Error(err)
	}
	if err := e.RemovePod(t.Context(), "c1"); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"apply", "add", "remove"}, r.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(wantKept[1:2], r.added, same); diff != "" {
		t.Errorf("added (-want +got):\n%s", diff)
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	unlock, err := lock(t.Context(), log, dir)
	if err != nil {
		t.Fatal(err)
	}
	soon, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := lock(soon, log, dir); err == nil || !strings.Contains(err.Error(), "another hauberk-node") {
		t.Errorf("locked twice: %v", err)
	}
	unlock()
	again, err := lock(t.Context(), log, dir)
	if err != nil {
		t.Fatal(err)
	}
	again()
}
