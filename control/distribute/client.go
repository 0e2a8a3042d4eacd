package distribute

import (
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
)

// Limits of what a client may make the server remember.
const (
	maxNames      = 20000 // subscriptions by name, of all types
	maxNameLength = 128
	maxProgrammed = 2000 // pods in a node's report
	star          = "*"
)

// absent stands in for the version of a name of which the client was told that
// it does not exist.
const absent = "absent"

// sendOrder has what is referred to before what refers to it.
var sendOrder = []hauberkv1.ResourceType{
	hauberkv1.ResourceType_RESOURCE_TYPE_MESH,
	hauberkv1.ResourceType_RESOURCE_TYPE_PEER_SET,
	hauberkv1.ResourceType_RESOURCE_TYPE_POLICY_SET,
	hauberkv1.ResourceType_RESOURCE_TYPE_WORKLOAD,
	hauberkv1.ResourceType_RESOURCE_TYPE_DESTINATION,
	hauberkv1.ResourceType_RESOURCE_TYPE_TUNNEL_PEER,
}

// client is one stream. Its receiver and its sender share it under mu.
type client struct {
	audience audience      // set once
	since    time.Time     // set once
	dirty    chan struct{} // holds at most one token: the sender has something to look at

	mu       sync.Mutex
	version  string // of the client's program
	types    map[hauberkv1.ResourceType]*subscription
	nonce    uint64
	names    int
	nacks    uint64
	lastNACK string
	report   *hauberkv1.NodeReport
	sending  time.Time // since when a Send is under way; zero when none is
}

// subscription is what a client wants and has of one type.
type subscription struct {
	all   bool
	names map[string]struct{}
	// sent is the version of each name that was sent, or that the client said
	// it has, whether or not it was acknowledged.
	sent map[string]string
	// acked is what the client acknowledged, on this stream or, as it said when it
	// subscribed, on an earlier one.
	acked map[string]string
	// rejected is the version of each name that the client refused on its own; it
	// is not sent again.
	rejected map[string]string
	// told is what the client said it has when it subscribed.
	told map[string]string
	// completing: the response that answers "*" is due.
	completing bool
	// alone is what is to be sent each in a response of its own: a response
	// with several was rejected.
	alone   []string
	pending *pending
}

// pending is the response that the client has not acknowledged yet. There is
// one of a type at most, so a slow client is told only the newest state.
type pending struct {
	nonce    string
	since    time.Time
	versions map[string]string
	complete bool
}

func newClient(a audience, now time.Time) *client {
	return &client{
		audience: a, since: now,
		dirty: make(chan struct{}, 1),
		types: make(map[hauberkv1.ResourceType]*subscription),
	}
}

// poke makes the sender look. It never blocks.
func (c *client) poke() {
	select {
	case c.dirty <- struct{}{}:
	default:
	}
}

// receive takes a request. It returns the node's report when there is one, and
// a gRPC status when the client must be cut off.
func (c *client) receive(r *hauberkv1.DiscoveryRequest) (*hauberkv1.NodeReport, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v := r.GetClientVersion(); v != "" && len(v) <= maxNameLength {
		c.version = v
	}
	var report *hauberkv1.NodeReport
	if n := r.GetNodeReport(); n != nil {
		if c.audience.node == "" {
			return nil, status.Error(codes.PermissionDenied, "only a node agent reports on a node")
		}
		if len(n.GetProgrammed()) > maxProgrammed {
			return nil, status.Errorf(codes.InvalidArgument, "report of %d pods, at most %d fit on a node", len(n.GetProgrammed()), maxProgrammed)
		}
		c.report, report = n, n
	}
	t := r.GetType()
	if t == hauberkv1.ResourceType_RESOURCE_TYPE_UNSPECIFIED {
		if len(r.GetSubscribe())+len(r.GetUnsubscribe()) > 0 || r.GetResponseNonce() != "" {
			return nil, status.Error(codes.InvalidArgument, "request without a type")
		}
		return report, nil
	}
	if !slices.Contains(sendOrder, t) {
		// A type of a newer client: there is nothing of it here.
		return report, nil
	}
	s := c.types[t]
	if s == nil {
		s = &subscription{
			names: make(map[string]struct{}), sent: make(map[string]string), acked: make(map[string]string),
			rejected: make(map[string]string), told: make(map[string]string),
		}
		c.types[t] = s
	}
	if nonce := r.GetResponseNonce(); nonce != "" {
		c.acknowledge(s, nonce, r.GetError())
	}
	for _, name := range r.GetUnsubscribe() {
		s.unsubscribe(name, &c.names)
	}
	if n := len(r.GetInitialVersions()); n > maxNames || n > 0 && len(s.acked)+n > 2*maxNames {
		// A client says what it has once a stream; more often is only more to
		// remember.
		return nil, status.Errorf(codes.ResourceExhausted, "more than %d initial versions", maxNames)
	}
	for _, name := range r.GetSubscribe() {
		if len(name) > maxNameLength {
			return nil, status.Errorf(codes.InvalidArgument, "name of %d bytes, at most %d", len(name), maxNameLength)
		}
		s.subscribe(name, r.GetInitialVersions(), &c.names)
	}
	if c.names > maxNames {
		return nil, status.Errorf(codes.ResourceExhausted, "more than %d subscriptions", maxNames)
	}
	return report, nil
}

func (s *subscription) subscribe(name string, has map[string]string, names *int) {
	if name == star {
		s.all, s.completing = true, true
		for n, version := range has {
			s.told[n], s.sent[n], s.acked[n] = version, version, version
		}
		return
	}
	if _, ok := s.names[name]; !ok {
		s.names[name] = struct{}{}
		*names++
	}
	delete(s.rejected, name)
	if version, ok := has[name]; ok {
		s.sent[name], s.acked[name] = version, version
	} else {
		delete(s.sent, name) // it is sent afresh
	}
}

func (s *subscription) unsubscribe(name string, names *int) {
	if name == star {
		s.all, s.completing = false, false
		clear(s.told)
		keep := func(n, _ string) bool { _, ok := s.names[n]; return !ok }
		maps.DeleteFunc(s.sent, keep)
		maps.DeleteFunc(s.acked, keep)
		return
	}
	if _, ok := s.names[name]; !ok {
		return
	}
	delete(s.names, name)
	*names--
	if !s.all {
		delete(s.sent, name)
		delete(s.acked, name)
		delete(s.rejected, name)
	}
}

func (c *client) acknowledge(s *subscription, nonce, problem string) {
	p := s.pending
	if p == nil || p.nonce != nonce {
		return // of no response that is still waited for
	}
	s.pending = nil
	if problem == "" {
		for name, version := range p.versions {
			if version == absent {
				delete(s.acked, name)
			} else {
				s.acked[name] = version
			}
		}
		return
	}
	c.nacks++
	c.lastNACK = problem
	// The client applied nothing of it. Of a response with several resources the
	// others may be good: each gets a chance of its own.
	if len(p.versions) == 1 && !p.complete {
		for name, version := range p.versions {
			s.rejected[name] = version
		}
		return
	}
	if p.complete && len(p.versions) <= 1 {
		for name, version := range p.versions {
			s.rejected[name] = version
		}
		s.completing = len(p.versions) == 1
		return
	}
	s.alone = slices.Sorted(maps.Keys(p.versions))
	s.completing = s.completing || p.complete
	for _, name := range s.alone {
		delete(s.sent, name)
	}
}

// next is the response of a type that is due, nil when none is. The caller
// holds mu.
func (c *client) next(snap *snapshot, t hauberkv1.ResourceType, now time.Time) *hauberkv1.DiscoveryResponse {
	s := c.types[t]
	if s == nil || s.pending != nil || (!s.all && len(s.names) == 0 && len(s.sent) == 0) {
		return nil
	}
	wanted := make(map[string]*resource, len(s.names))
	if s.all {
		maps.Copy(wanted, c.audience.all(snap, t))
	}
	for name := range s.names {
		if wanted[name] == nil {
			wanted[name] = c.audience.byName(snap, t, name)
		}
	}
	response := &hauberkv1.DiscoveryResponse{Type: t}
	versions := make(map[string]string)
	for len(s.alone) > 0 && len(versions) == 0 {
		name := s.alone[0]
		s.alone = s.alone[1:]
		s.add(response, versions, name, wanted[name])
	}
	if len(versions) == 0 {
		if s.completing {
			// A complete response has everything that the client did not say it has.
			for name := range s.sent {
				if _, told := s.told[name]; !told {
					delete(s.sent, name)
				}
			}
		}
		for _, name := range slices.Sorted(maps.Keys(wanted)) {
			s.add(response, versions, name, wanted[name])
		}
		for _, name := range slices.Sorted(maps.Keys(s.sent)) {
			if _, ok := wanted[name]; !ok {
				s.add(response, versions, name, nil)
			}
		}
		response.Complete = s.completing
		s.completing = false
		if response.Complete {
			clear(s.told)
		}
	}
	if len(response.Resources) == 0 && len(response.Removed) == 0 && !response.Complete {
		return nil
	}
	c.nonce++
	response.Nonce = strconv.FormatUint(c.nonce, 10)
	s.pending = &pending{nonce: response.Nonce, since: now, versions: versions, complete: response.Complete}
	return response
}

// add puts a resource, or its removal, into the response unless the client has
// it so already.
func (s *subscription) add(response *hauberkv1.DiscoveryResponse, versions map[string]string, name string, r *resource) {
	if r == nil {
		_, named := s.names[name]
		if had, ok := s.sent[name]; ok && had == absent || !ok && !named {
			return
		}
		response.Removed = append(response.Removed, name)
		versions[name] = absent
		if named {
			s.sent[name] = absent
		} else {
			delete(s.sent, name)
		}
		delete(s.rejected, name)
		return
	}
	if s.sent[name] == r.version || s.rejected[name] == r.version {
		return
	}
	response.Resources = append(response.Resources, r.proto)
	versions[name] = r.version
	s.sent[name] = r.version
	delete(s.rejected, name)
}

// overdue is since when the client owes the server reading or an
// acknowledgement; zero when it owes nothing.
func (c *client) overdue() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	oldest := c.sending
	for _, s := range c.types {
		if s.pending != nil && (oldest.IsZero() || s.pending.since.Before(oldest)) {
			oldest = s.pending.since
		}
	}
	return oldest
}
