package directory

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/discovery"
	"github.com/hauberk-mesh/hauberk/policy"
)

type subscriptions struct {
	mu    sync.Mutex
	names map[string]int
}

func (s *subscriptions) Subscribe(_ hauberkv1.ResourceType, names ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range names {
		s.names[n]++
	}
}

func (s *subscriptions) Unsubscribe(_ hauberkv1.ResourceType, names ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range names {
		s.names[n]--
	}
}

func (s *subscriptions) count(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.names[name]
}

const (
	destinationType = hauberkv1.ResourceType_RESOURCE_TYPE_DESTINATION
	workloadType    = hauberkv1.ResourceType_RESOURCE_TYPE_WORKLOAD
	setType         = hauberkv1.ResourceType_RESOURCE_TYPE_POLICY_SET
)

var service = netip.MustParseAddrPort("10.96.0.1:80")

func destination(version string) *hauberkv1.Resource {
	return &hauberkv1.Resource{Name: service.String(), Version: version, Body: &hauberkv1.Resource_Destination{
		Destination: &hauberkv1.Destination{Kind: "Service", Namespace: "a", Name: "b"}}}
}

func own(set string) *hauberkv1.Resource {
	return &hauberkv1.Resource{Name: "uid/me", Body: &hauberkv1.Resource_Workload{Workload: &hauberkv1.Workload{Uid: "me", PolicySet: set}}}
}

func policySet(name string) *hauberkv1.Resource {
	return &hauberkv1.Resource{Name: name, Body: &hauberkv1.Resource_PolicySet{PolicySet: &hauberkv1.PolicySet{Id: name, DefaultAction: hauberkv1.Action_ACTION_ALLOW}}}
}

func apply(t *testing.T, d *Directory, kind hauberkv1.ResourceType, resources ...*hauberkv1.Resource) {
	t.Helper()
	if err := d.Apply(discovery.Update{Type: kind, Resources: resources}); err != nil {
		t.Fatal(err)
	}
}

func TestDestinations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		subs := &subscriptions{names: make(map[string]int)}
		d := New("me", slog.New(slog.DiscardHandler))
		d.Bind(subs)

		start := time.Now()
		if _, err := d.HoldDestination(t.Context(), service); !errors.Is(err, ErrUnknown) || time.Since(start) != AnswerWait {
			t.Errorf("never told: %v after %s", err, time.Since(start))
		}
		apply(t, d, destinationType, destination("1"))
		ref, err := d.HoldDestination(t.Context(), service)
		if err != nil || ref.Value().Version != "1" || subs.count(service.String()) != 1 {
			t.Fatalf("told: %v", err)
		}
		apply(t, d, destinationType, destination("2"))
		if ref.Value().Version != "2" {
			t.Error("a held destination does not follow changes")
		}

		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = d.Run(ctx) }()
		time.Sleep(time.Hour)
		if subs.count(service.String()) != 1 {
			t.Error("a held destination was forgotten")
		}
		ref.Release()
		time.Sleep(time.Hour)
		if subs.count(service.String()) != 0 {
			t.Error("an unused destination is kept for ever")
		}
		cancel()
		<-done

		if err := d.Apply(discovery.Update{Type: destinationType, Removed: []string{service.String()}}); err != nil {
			t.Error(err)
		}
		go func() {
			time.Sleep(time.Millisecond)
			_ = d.Apply(discovery.Update{Type: destinationType, Removed: []string{service.String()}})
		}()
		if _, err := d.HoldDestination(t.Context(), service); !errors.Is(err, ErrAbsent) {
			t.Errorf("not of the mesh: %v", err)
		}
	})
}

func TestSelf(t *testing.T) {
	d := New("me", slog.New(slog.DiscardHandler))
	apply(t, d, workloadType, own("one"))
	if d.Self() != nil {
		t.Fatal("ready without policy")
	}
	apply(t, d, setType, policySet("one"))
	select {
	case <-d.Ready():
	default:
		t.Fatal("not ready with workload and policy")
	}
	if d.Self().Set.DefaultAction != policy.Allow {
		t.Error("the set is not the one sent")
	}
	// A set that is named before it comes leaves the last one in force.
	apply(t, d, workloadType, own("two"))
	if d.Self().Set.ID != "one" {
		t.Errorf("set %q", d.Self().Set.ID)
	}
	// One with a field that this program does not know denies everything.
	newer := policySet("two")
	newer.GetPolicySet().ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 1000, protowire.VarintType), 1))
	if err := d.Apply(discovery.Update{Type: setType, Resources: []*hauberkv1.Resource{newer}}); err == nil {
		t.Error("an unreadable set was acknowledged")
	}
	if v := d.Self().Set.Evaluate(policy.Ingress, &policy.Flow{Protocol: policy.TCP, Port: 80}); v.Allowed() {
		t.Error("an unreadable set allows")
	}
	apply(t, d, setType, policySet("two"))
	if d.Self().Set.DefaultAction != policy.Allow {
		t.Error("a good set does not replace an unreadable one")
	}
}
