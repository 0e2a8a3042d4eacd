package discovery

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
)

// state is what the client remembers, over connections, of what it wants and
// has. It knows neither network nor locks.
type state struct {
	types         map[hauberkv1.ResourceType]*typeState
	report        *hauberkv1.NodeReport
	reportPending bool
	connected     bool // the server answered on this stream
	lastSync      time.Time
}

type typeState struct {
	wanted map[string]struct{}
	held   map[string]string // name to version, of what the handler has

	// Of the present stream.
	opened      bool                // its first request was made
	subscribe   map[string]struct{} // to be sent
	unsubscribe map[string]struct{} // to be sent, before subscribe
	told        map[string]struct{} // names that were sent in initial_versions
	complete    bool
}

func newState() state {
	return state{types: make(map[hauberkv1.ResourceType]*typeState)}
}

func (s *state) of(t hauberkv1.ResourceType) *typeState {
	ts := s.types[t]
	if ts == nil {
		ts = &typeState{
			wanted: make(map[string]struct{}), held: make(map[string]string),
			subscribe: make(map[string]struct{}), unsubscribe: make(map[string]struct{}), told: make(map[string]struct{}),
		}
		s.types[t] = ts
	}
	return ts
}

func (s *state) subscribe(t hauberkv1.ResourceType, names ...string) {
	ts := s.of(t)
	for _, name := range names {
		if _, ok := ts.wanted[name]; ok || name == "" {
			continue
		}
		ts.wanted[name] = struct{}{}
		ts.subscribe[name] = struct{}{}
		if name == All {
			ts.complete = false
		}
	}
}

func (s *state) unsubscribe(t hauberkv1.ResourceType, names ...string) {
	ts := s.of(t)
	for _, name := range names {
		if _, ok := ts.wanted[name]; !ok {
			continue
		}
		delete(ts.wanted, name)
		delete(ts.held, name)
		if name == All {
			maps.DeleteFunc(ts.held, func(held, _ string) bool { _, ok := ts.wanted[held]; return !ok })
		}
		if _, unsent := ts.subscribe[name]; unsent {
			// The server has not heard of it on this stream, or hears of the
			// earlier unsubscription, which is still in the other set.
			delete(ts.subscribe, name)
			continue
		}
		ts.unsubscribe[name] = struct{}{}
	}
}

// begin prepares a new stream: everything is to be said again.
func (s *state) begin() {
	s.connected = false
	s.reportPending = s.report != nil
	for _, ts := range s.types {
		ts.opened, ts.complete = false, false
		clear(ts.unsubscribe)
		clear(ts.told)
		ts.subscribe = maps.Clone(ts.wanted)
	}
}

// end notes that the stream is gone.
func (s *state) end(now time.Time) {
	if s.synced() {
		s.lastSync = now
	}
	s.connected = false
	for _, ts := range s.types {
		ts.complete = false
	}
}

// synced says whether every type that is subscribed by All was completed on this
// stream, and there is one.
func (s *state) synced() bool {
	if !s.connected {
		return false
	}
	any := false
	for _, ts := range s.types {
		if _, ok := ts.wanted[All]; !ok {
			continue
		}
		if !ts.complete {
			return false
		}
		any = true
	}
	return any
}

// requests takes what is to be sent.
func (s *state) requests() []*hauberkv1.DiscoveryRequest {
	var requests []*hauberkv1.DiscoveryRequest
	for _, t := range slices.Sorted(maps.Keys(s.types)) {
		ts := s.types[t]
		if len(ts.unsubscribe) > 0 {
			// A message of its own: a name may be in both, and must then end
			// subscribed and be sent afresh.
			requests = append(requests, &hauberkv1.DiscoveryRequest{Type: t, Unsubscribe: take(ts.unsubscribe)})
		}
		if len(ts.subscribe) > 0 {
			request := &hauberkv1.DiscoveryRequest{Type: t, Subscribe: take(ts.subscribe)}
			if !ts.opened {
				ts.opened = true
				request.InitialVersions = maps.Clone(ts.held)
				for name := range ts.held {
					ts.told[name] = struct{}{}
				}
			}
			requests = append(requests, request)
		}
	}
	if s.reportPending {
		s.reportPending = false
		requests = append(requests, &hauberkv1.DiscoveryRequest{NodeReport: s.report})
	}
	return requests
}

func take(set map[string]struct{}) []string {
	names := slices.Sorted(maps.Keys(set))
	clear(set)
	return names
}

// update is what a response, which check accepted, means to the handler.
func (s *state) update(response *hauberkv1.DiscoveryResponse) Update {
	ts := s.of(response.GetType())
	_, all := ts.wanted[All]
	update := Update{Type: response.GetType(), Complete: response.GetComplete() && all}
	present := make(map[string]struct{}, len(response.GetResources()))
	for _, resource := range response.GetResources() {
		name := resource.GetName()
		if _, ok := ts.wanted[name]; ok || all {
			update.Resources = append(update.Resources, resource)
			present[name] = struct{}{}
		}
	}
	for _, name := range response.GetRemoved() {
		_, wanted := ts.wanted[name]
		_, held := ts.held[name]
		if wanted || held {
			update.Removed = append(update.Removed, name)
			present[name] = struct{}{}
		}
	}
	if update.Complete && !ts.complete {
		// The server leaves out what it was told that we have, unless it
		// changed or went; of the rest, what is absent does not exist.
		for _, name := range slices.Sorted(maps.Keys(ts.held)) {
			_, named := ts.wanted[name]
			_, told := ts.told[name]
			_, mentioned := present[name]
			if !named && !told && !mentioned {
				update.Removed = append(update.Removed, name)
			}
		}
	}
	return update
}

// commit notes that the handler applied an update.
func (s *state) commit(update Update) {
	ts := s.of(update.Type)
	_, all := ts.wanted[All]
	for _, resource := range update.Resources {
		if _, ok := ts.wanted[resource.GetName()]; ok || all {
			ts.held[resource.GetName()] = resource.GetVersion()
		}
	}
	for _, name := range update.Removed {
		delete(ts.held, name)
	}
	if update.Complete && all {
		ts.complete = true
	}
}

// check refuses a response that contradicts itself.
func check(response *hauberkv1.DiscoveryResponse) error {
	t := response.GetType()
	if _, known := hauberkv1.ResourceType_name[int32(t)]; !known || t == hauberkv1.ResourceType_RESOURCE_TYPE_UNSPECIFIED {
		return fmt.Errorf("response of unknown type %s", t)
	}
	seen := make(map[string]struct{}, len(response.GetResources())+len(response.GetRemoved()))
	once := func(name string) error {
		if name == "" || name == All {
			return fmt.Errorf("%s with the name %q", t, name)
		}
		if _, ok := seen[name]; ok {
			return fmt.Errorf("%s %q twice in one response", t, name)
		}
		seen[name] = struct{}{}
		return nil
	}
	for _, resource := range response.GetResources() {
		if err := once(resource.GetName()); err != nil {
			return err
		}
		if got := typeOf(resource); got != t {
			return fmt.Errorf("resource %q in a response of %s has a body of %s", resource.GetName(), t, got)
		}
	}
	for _, name := range response.GetRemoved() {
		if err := once(name); err != nil {
			return err
		}
	}
	return nil
}

// typeOf is the type of a resource's body; unspecified for one that this
// version of the program does not know.
func typeOf(resource *hauberkv1.Resource) hauberkv1.ResourceType {
	switch resource.GetBody().(type) {
	case *hauberkv1.Resource_Mesh:
		return hauberkv1.ResourceType_RESOURCE_TYPE_MESH
	case *hauberkv1.Resource_Workload:
		return hauberkv1.ResourceType_RESOURCE_TYPE_WORKLOAD
	case *hauberkv1.Resource_PolicySet:
		return hauberkv1.ResourceType_RESOURCE_TYPE_POLICY_SET
	case *hauberkv1.Resource_PeerSet:
		return hauberkv1.ResourceType_RESOURCE_TYPE_PEER_SET
	case *hauberkv1.Resource_Destination:
		return hauberkv1.ResourceType_RESOURCE_TYPE_DESTINATION
	case *hauberkv1.Resource_TunnelPeer:
		return hauberkv1.ResourceType_RESOURCE_TYPE_TUNNEL_PEER
	}
	return hauberkv1.ResourceType_RESOURCE_TYPE_UNSPECIFIED
}

// errorText is an error as it may travel: valid UTF-8 and short; never empty,
// because an empty text is an acknowledgement.
func errorText(err error) string {
	text := strings.ToValidUTF8(err.Error(), "\uFFFD")
	if len(text) > maxErrorText {
		text = strings.ToValidUTF8(text[:maxErrorText], "")
	}
	if text == "" {
		text = "rejected without a reason"
	}
	return text
}
