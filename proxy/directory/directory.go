// Package directory is what a sidecar knows: its own pod and policy, the mesh,
// and the destinations and workloads that its connections named so far. What
// the control plane said stays valid while it is away; what it never said is
// unknown, and unknown is for the caller to refuse.
//
// The package owns caching and subscribing. It does not own the stream
// (internal/discovery) or any decision.
package directory

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/discovery"
	"github.com/hauberk-mesh/hauberk/internal/wire"
	"github.com/hauberk-mesh/hauberk/policy"
)

// Subscriber is the part of the stream's client that the directory needs.
type Subscriber interface {
	Subscribe(t hauberkv1.ResourceType, names ...string)
	Unsubscribe(t hauberkv1.ResourceType, names ...string)
}

// Limits and times.
const (
	// AnswerWait is how long a connection waits for the control plane to
	// answer about a name that is asked for the first time.
	AnswerWait = 2 * time.Second

	maxDestinations = 4096
	maxWorkloads    = 8192
	forgetAfter     = 10 * time.Minute
	sweepEvery      = time.Minute
)

// Directory is safe for concurrent use.
type Directory struct {
	podUID string
	log    *slog.Logger

	self         atomic.Pointer[Self]
	mesh         atomic.Pointer[Mesh]
	destinations *table[Destination]
	workloads    *table[Workload]
	updated      atomic.Int64 // Unix nanoseconds of the last update

	ready     chan struct{} // closed when self is known
	readyOnce sync.Once

	// Owned by the goroutine that calls Apply.
	own  *Workload
	sets map[string]namedSet

	mu        sync.Mutex
	listeners []chan struct{} // guarded by mu; each of size 1
}

type namedSet struct {
	set     *policy.Set
	version string
}

// New makes an empty directory for the pod.
func New(podUID string, log *slog.Logger) *Directory {
	d := &Directory{podUID: podUID, log: log, ready: make(chan struct{}), sets: make(map[string]namedSet),
		destinations: newTable[Destination](maxDestinations), workloads: newTable[Workload](maxWorkloads)}
	d.mesh.Store(&Mesh{Proto: &hauberkv1.Mesh{}})
	return d
}

// Bind sets who is asked for names that were not asked for yet.
func (d *Directory) Bind(s Subscriber) {
	bind := func(t hauberkv1.ResourceType) (sub, unsub func(string)) {
		return func(n string) { s.Subscribe(t, n) }, func(n string) { s.Unsubscribe(t, n) }
	}
	d.destinations.bind(bind(hauberkv1.ResourceType_RESOURCE_TYPE_DESTINATION))
	d.workloads.bind(bind(hauberkv1.ResourceType_RESOURCE_TYPE_WORKLOAD))
}

// Run forgets unused names until ctx ends.
func (d *Directory) Run(ctx context.Context) error {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			d.destinations.sweep(now.Add(-forgetAfter))
			d.workloads.sweep(now.Add(-forgetAfter))
		}
	}
}

// Ready is closed when the own pod and its policy are known.
func (d *Directory) Ready() <-chan struct{} { return d.ready }

// Self is the own pod and its policy, nil until Ready.
func (d *Directory) Self() *Self { return d.self.Load() }

// Mesh is never nil.
func (d *Directory) Mesh() *Mesh { return d.mesh.Load() }

// Updated is when the control plane last said anything, zero for never.
func (d *Directory) Updated() time.Time {
	if n := d.updated.Load(); n != 0 {
		return time.Unix(0, n)
	}
	return time.Time{}
}

// Changes is signalled after updates that may change decisions. Signals
// coalesce; nobody is waited for.
func (d *Directory) Changes() <-chan struct{} {
	c := make(chan struct{}, 1)
	d.mu.Lock()
	d.listeners = append(d.listeners, c)
	d.mu.Unlock()
	return c
}

func (d *Directory) changed() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.listeners {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// Ref holds something that a live connection depends on: it stays watched, and
// Value is what it is now, until Release. A nil Ref holds nothing.
type Ref[T any] struct{ e *entry[T] }

// Value is nil when it is absent or unknown.
func (r *Ref[T]) Value() *T {
	if r == nil {
		return nil
	}
	return r.e.value.Load()
}

// Known reports whether the control plane has answered, if only that there is
// no such thing. Of nothing all is known.
func (r *Ref[T]) Known() bool {
	if r == nil {
		return true
	}
	select {
	case <-r.e.answered:
		return true
	default:
		return false
	}
}

// Release lets go.
func (r *Ref[T]) Release() {
	if r != nil {
		r.e.release()
	}
}

// HoldDestination finds what stands behind addr: ErrAbsent when it is not of
// the mesh, ErrUnknown when nobody told in time. With an error there is no Ref.
func (d *Directory) HoldDestination(ctx context.Context, addr netip.AddrPort) (*Ref[Destination], error) {
	e := d.destinations.hold(addr.String(), time.Now())
	if _, err := e.wait(ctx, AnswerWait); err != nil {
		e.release()
		return nil, err
	}
	return &Ref[Destination]{e}, nil
}

// HoldUID finds a workload by its pod's UID and waits briefly for the answer.
// The Ref is valid whether there was one or not.
func (d *Directory) HoldUID(ctx context.Context, uid string) *Ref[Workload] {
	return d.hold(ctx, "uid/"+uid)
}

// HoldIP is HoldUID by address.
func (d *Directory) HoldIP(ctx context.Context, addr netip.Addr) *Ref[Workload] {
	return d.hold(ctx, "ip/"+addr.String())
}

func (d *Directory) hold(ctx context.Context, name string) *Ref[Workload] {
	e := d.workloads.hold(name, time.Now())
	if _, err := e.wait(ctx, AnswerWait); errors.Is(err, ErrUnknown) {
		d.log.Warn("workload not known: the control plane has not answered", "name", name)
	}
	return &Ref[Workload]{e}
}

// Each calls the functions with all that is cached, for the admin.
func (d *Directory) Each(destination func(string, *Destination), workload func(string, *Workload)) {
	d.destinations.each(destination)
	d.workloads.each(workload)
}

// Apply takes an update. It is called by one goroutine.
func (d *Directory) Apply(u discovery.Update) error {
	d.updated.Store(time.Now().UnixNano())
	switch u.Type {
	case hauberkv1.ResourceType_RESOURCE_TYPE_MESH:
		for _, r := range u.Resources {
			if r.GetMesh() != nil {
				d.mesh.Store(meshFrom(r))
			}
		}
	case hauberkv1.ResourceType_RESOURCE_TYPE_WORKLOAD:
		if err := d.applyWorkloads(u); err != nil {
			return err
		}
	case hauberkv1.ResourceType_RESOURCE_TYPE_POLICY_SET:
		if err := d.applySets(u); err != nil {
			return err
		}
	case hauberkv1.ResourceType_RESOURCE_TYPE_DESTINATION:
		return d.applyDestinations(u)
	default:
		return fmt.Errorf("resources of type %v are not for a sidecar", u.Type)
	}
	d.changed()
	return nil
}

func (d *Directory) applyWorkloads(u discovery.Update) error {
	parsed := make(map[string]*Workload, len(u.Resources))
	for _, r := range u.Resources {
		w, err := workloadFrom(r)
		if err != nil {
			return err
		}
		parsed[r.GetName()] = w
	}
	for name, w := range parsed {
		if w.UID == d.podUID {
			d.own = w
		}
		d.workloads.set(name, w)
	}
	for _, name := range u.Removed {
		// The own pod stays as it was: it is policed to its end.
		d.workloads.set(name, nil)
	}
	d.publish()
	return nil
}

// applySets stores the own policy. A set that can't be read is refused, and
// until a better one comes everything is denied: it may hold what forbids.
func (d *Directory) applySets(u discovery.Update) error {
	var failed error
	next := maps.Clone(d.sets)
	for _, name := range u.Removed {
		delete(next, name)
	}
	for _, r := range u.Resources {
		s, err := wire.PolicySetFromProto(r.GetPolicySet())
		if err != nil {
			failed = errors.Join(failed, err)
			s = &policy.Set{ID: r.GetName()}
		}
		next[r.GetName()] = namedSet{s.Indexed(), r.GetVersion()}
	}
	if failed != nil {
		d.log.Error("policy can't be read, so everything is denied", "error", failed.Error())
	}
	d.sets = next
	d.publish()
	if failed != nil {
		d.changed()
	}
	return failed
}

// publish makes a Self of what is known. A policy set that the workload names
// and that did not come yet leaves the last one in force.
func (d *Directory) publish() {
	if d.own == nil {
		return
	}
	s, ok := d.sets[d.own.Proto.GetPolicySet()]
	if !ok {
		last := d.self.Load()
		if last == nil {
			return
		}
		s = namedSet{last.Set, last.SetVersion}
	}
	d.self.Store(&Self{Workload: d.own, Set: s.set, SetVersion: s.version})
	d.readyOnce.Do(func() { close(d.ready) })
}

func (d *Directory) applyDestinations(u discovery.Update) error {
	parsed := make([]*Destination, len(u.Resources))
	for i, r := range u.Resources {
		p, err := destinationFrom(r)
		if err != nil {
			return err
		}
		parsed[i] = p
	}
	for i, r := range u.Resources {
		d.destinations.set(r.GetName(), parsed[i])
	}
	for _, name := range u.Removed {
		d.destinations.set(name, nil)
	}
	return nil
}
