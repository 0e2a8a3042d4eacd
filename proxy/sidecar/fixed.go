package sidecar

import (
	"context"
	"slices"
	"sync"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/discovery"
)

// Fixed answers subscriptions from a list of resources instead of a control
// plane. Names that are not in the list are not of the mesh.
type Fixed struct {
	handler discovery.Handler
	wake    chan struct{} // size 1

	mu        sync.Mutex
	resources map[fixedKey]*hauberkv1.Resource // guarded by mu
	wanted    map[fixedKey]bool                // guarded by mu
	pending   []fixedKey                       // guarded by mu
	own       bool                             // guarded by mu; what is not asked for by name is to be sent
}

type fixedKey struct {
	t    hauberkv1.ResourceType
	name string
}

// NewFixed answers to handler.
func NewFixed(handler discovery.Handler, resources []*hauberkv1.Resource) *Fixed {
	f := &Fixed{handler: handler, wake: make(chan struct{}, 1), wanted: make(map[fixedKey]bool)}
	f.Replace(resources)
	return f
}

// Replace changes the list.
func (f *Fixed) Replace(resources []*hauberkv1.Resource) {
	f.mu.Lock()
	f.resources = make(map[fixedKey]*hauberkv1.Resource, len(resources))
	for _, r := range resources {
		f.resources[fixedKey{typeOf(r), r.GetName()}] = r
	}
	f.own = true
	f.pending = f.pending[:0]
	for k := range f.wanted {
		f.pending = append(f.pending, k)
	}
	f.mu.Unlock()
	f.signal()
}

func typeOf(r *hauberkv1.Resource) hauberkv1.ResourceType {
	switch r.GetBody().(type) {
	case *hauberkv1.Resource_Mesh:
		return hauberkv1.ResourceType_RESOURCE_TYPE_MESH
	case *hauberkv1.Resource_Workload:
		return hauberkv1.ResourceType_RESOURCE_TYPE_WORKLOAD
	case *hauberkv1.Resource_PolicySet:
		return hauberkv1.ResourceType_RESOURCE_TYPE_POLICY_SET
	case *hauberkv1.Resource_Destination:
		return hauberkv1.ResourceType_RESOURCE_TYPE_DESTINATION
	}
	return hauberkv1.ResourceType_RESOURCE_TYPE_UNSPECIFIED
}

// Subscribe answers for names, soon.
func (f *Fixed) Subscribe(t hauberkv1.ResourceType, names ...string) {
	f.mu.Lock()
	for _, n := range names {
		f.wanted[fixedKey{t, n}] = true
		f.pending = append(f.pending, fixedKey{t, n})
	}
	f.mu.Unlock()
	f.signal()
}

// Unsubscribe stops answering for names.
func (f *Fixed) Unsubscribe(t hauberkv1.ResourceType, names ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range names {
		delete(f.wanted, fixedKey{t, n})
	}
}

func (f *Fixed) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Run hands out answers until ctx ends. The handler's errors end it: a list
// that can't be read is no configuration.
func (f *Fixed) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.wake:
		}
		for _, u := range f.take() {
			if err := f.handler.Apply(u); err != nil {
				return err
			}
		}
	}
}

func (f *Fixed) take() []discovery.Update {
	f.mu.Lock()
	defer f.mu.Unlock()
	var updates []discovery.Update
	if f.own {
		f.own = false
		for _, t := range []hauberkv1.ResourceType{hauberkv1.ResourceType_RESOURCE_TYPE_MESH,
			hauberkv1.ResourceType_RESOURCE_TYPE_POLICY_SET, hauberkv1.ResourceType_RESOURCE_TYPE_WORKLOAD} {
			u := discovery.Update{Type: t, Complete: true}
			for k, r := range f.resources {
				if k.t == t {
					u.Resources = append(u.Resources, r)
				}
			}
			updates = append(updates, u)
		}
	}
	for _, k := range f.pending {
		if r, ok := f.resources[k]; ok {
			updates = append(updates, discovery.Update{Type: k.t, Resources: []*hauberkv1.Resource{r}})
		} else {
			updates = append(updates, discovery.Update{Type: k.t, Removed: []string{k.name}})
		}
	}
	f.pending = slices.Delete(f.pending, 0, len(f.pending))
	return updates
}
