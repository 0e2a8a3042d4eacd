package discovery

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/identity"
	"github.com/hauberk-mesh/hauberk/internal/identity/identitytest"
)

const (
	mesh     = hauberkv1.ResourceType_RESOURCE_TYPE_MESH
	workload = hauberkv1.ResourceType_RESOURCE_TYPE_WORKLOAD
)

const patience = 20 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeServer hands each stream to the test.
type fakeServer struct {
	hauberkv1.UnimplementedDiscoveryServer
	t       *testing.T
	streams chan *fakeStream
}

type fakeStream struct {
	t    *testing.T
	s    hauberkv1.Discovery_StreamServer
	in   chan *hauberkv1.DiscoveryRequest
	stop chan error
}

func (f *fakeServer) Stream(s hauberkv1.Discovery_StreamServer) error {
	fs := &fakeStream{t: f.t, s: s, in: make(chan *hauberkv1.DiscoveryRequest, 64), stop: make(chan error, 1)}
	f.streams <- fs
	go func() {
		defer close(fs.in)
		for {
			request, err := s.Recv()
			if err != nil {
				return
			}
			fs.in <- request
		}
	}()
	select {
	case err := <-fs.stop:
		return err
	case <-s.Context().Done():
		return s.Context().Err()
	}
}

// expect reads the next request.
func (s *fakeStream) expect(want *hauberkv1.DiscoveryRequest) {
	s.t.Helper()
	select {
	case got := <-s.in:
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			s.t.Fatalf("request (-want +got):\n%s", diff)
		}
	case <-time.After(patience):
		s.t.Fatalf("no request; want %v", want)
	}
}

func (s *fakeStream) send(response *hauberkv1.DiscoveryResponse) {
	s.t.Helper()
	if err := s.s.Send(response); err != nil {
		s.t.Fatal(err)
	}
}

type recorder struct {
	mu      sync.Mutex
	reject  error
	updates chan Update
}

func (r *recorder) Apply(u Update) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.reject != nil {
		return r.reject
	}
	r.updates <- u
	return nil
}

func (r *recorder) setReject(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reject = err
}

func (r *recorder) expect(t *testing.T, want Update) {
	t.Helper()
	select {
	case got := <-r.updates:
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Fatalf("update (-want +got):\n%s", diff)
		}
	case <-time.After(patience):
		t.Fatalf("no update; want %v", want)
	}
}

type setup struct {
	client *Client
	server *fakeServer
	got    *recorder
}

func (s setup) stream(t *testing.T) *fakeStream {
	t.Helper()
	select {
	case stream := <-s.server.streams:
		return stream
	case <-time.After(patience):
		t.Fatal("no stream")
		return nil
	}
}

// start runs a client against a fake server over mTLS on loopback.
func start(t *testing.T, types ...hauberkv1.ResourceType) setup {
	t.Helper()
	ca := identitytest.NewAuthority(t, "")
	server := &fakeServer{t: t, streams: make(chan *fakeStream, 8)}
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(identity.ServerTLS(ca.Control(t)))))
	hauberkv1.RegisterDiscoveryServer(g, server)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	got := &recorder{updates: make(chan Update, 64)}
	source := ca.Workload(t, "bank", "summary", "pod-1")
	client, err := New(Options{
		Address: listener.Addr().String(),
		TLS:     identity.ClientTLS(source, identity.Expect{ID: identity.ControlID(ca.TrustDomain)}),
		Handler: got, Types: types, Version: "test", Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Ready: source.Ready(), MinBackoff: time.Millisecond, MaxBackoff: 20 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served, ran := make(chan error, 1), make(chan error, 1)
	go func() { served <- g.Serve(listener) }()
	go func() { ran <- client.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("Run: %v", err)
		}
		g.Stop()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return setup{client, server, got}
}

func resource(name, version string) *hauberkv1.Resource {
	return &hauberkv1.Resource{Name: name, Version: version, Body: &hauberkv1.Resource_Workload{Workload: &hauberkv1.Workload{Name: name}}}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("not in %s: %s", patience, what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestSubscribeAckResync(t *testing.T) {
	s := start(t, workload)
	stream := s.stream(t)
	if s.client.Connected() || !s.client.LastSync().IsZero() {
		t.Error("in step before the first answer")
	}
	stream.expect(&hauberkv1.DiscoveryRequest{ClientVersion: "test", Type: workload, Subscribe: []string{All}})
	a, b := resource("uid/a", "1"), resource("uid/b", "1")
	stream.send(&hauberkv1.DiscoveryResponse{Type: workload, Nonce: "n1", Resources: []*hauberkv1.Resource{a, b}, Complete: true})
	s.got.expect(t, Update{Type: workload, Resources: []*hauberkv1.Resource{a, b}, Complete: true})
	stream.expect(&hauberkv1.DiscoveryRequest{Type: workload, ResponseNonce: "n1"})
	until(t, "in step", func() bool { return s.client.Connected() && !s.client.LastSync().IsZero() })

	// By name, existing and not.
	s.client.Subscribe(workload, "ip/10.0.0.1", "ip/10.0.0.2")
	stream.expect(&hauberkv1.DiscoveryRequest{Type: workload, Subscribe: []string{"ip/10.0.0.1", "ip/10.0.0.2"}})
	named := resource("ip/10.0.0.1", "7")
	stream.send(&hauberkv1.DiscoveryResponse{Type: workload, Nonce: "n2", Resources: []*hauberkv1.Resource{named}, Removed: []string{"ip/10.0.0.2"}})
	s.got.expect(t, Update{Type: workload, Resources: []*hauberkv1.Resource{named}, Removed: []string{"ip/10.0.0.2"}})
	stream.expect(&hauberkv1.DiscoveryRequest{Type: workload, ResponseNonce: "n2"})

	// A rejected update is not remembered.
	s.got.setReject(errors.New("can't render"))
	stream.send(&hauberkv1.DiscoveryResponse{Type: workload, Nonce: "n3", Resources: []*hauberkv1.Resource{resource("uid/a", "2")}})
	stream.expect(&hauberkv1.DiscoveryRequest{Type: workload, ResponseNonce: "n3", Error: "can't render"})
	s.got.setReject(nil)

	// On a new stream all is said again; what went meanwhile is removed.
	stream.stop <- status.Error(codes.Unavailable, "restarting")
	before := time.Now()
	stream = s.stream(t)
	stream.expect(&hauberkv1.DiscoveryRequest{ClientVersion: "test", Type: workload,
		Subscribe:       []string{All, "ip/10.0.0.1", "ip/10.0.0.2"},
		InitialVersions: map[string]string{"uid/a": "1", "uid/b": "1", "ip/10.0.0.1": "7"}})
	if s.client.Connected() || s.client.LastSync().After(time.Now().Add(time.Second)) || before.Sub(s.client.LastSync()) > patience {
		t.Errorf("connected %v, last in step %s", s.client.Connected(), s.client.LastSync())
	}
	stream.send(&hauberkv1.DiscoveryResponse{Type: workload, Nonce: "m1", Resources: []*hauberkv1.Resource{resource("uid/a", "2")}, Removed: []string{"uid/b"}, Complete: true})
	s.got.expect(t, Update{Type: workload, Resources: []*hauberkv1.Resource{resource("uid/a", "2")}, Removed: []string{"uid/b"}, Complete: true})
	stream.expect(&hauberkv1.DiscoveryRequest{Type: workload, ResponseNonce: "m1"})
}

func TestUnsubscribeAndReport(t *testing.T) {
	s := start(t)
	stream := s.stream(t)
	stream.expect(&hauberkv1.DiscoveryRequest{ClientVersion: "test"})
	s.client.Subscribe(workload, "ip/10.0.0.1")
	stream.expect(&hauberkv1.DiscoveryRequest{Type: workload, Subscribe: []string{"ip/10.0.0.1"}})
	s.client.Unsubscribe(workload, "ip/10.0.0.1")
	stream.expect(&hauberkv1.DiscoveryRequest{Type: workload, Unsubscribe: []string{"ip/10.0.0.1"}})
	// What was under way for a name that nobody wants is acknowledged and dropped.
	stream.send(&hauberkv1.DiscoveryResponse{Type: workload, Nonce: "n1", Resources: []*hauberkv1.Resource{resource("ip/10.0.0.1", "1")}})
	stream.expect(&hauberkv1.DiscoveryRequest{Type: workload, ResponseNonce: "n1"})
	if len(s.got.updates) != 0 {
		t.Errorf("the handler got %v", <-s.got.updates)
	}
	report := &hauberkv1.NodeReport{WireguardPort: 51871}
	s.client.Report(report)
	stream.expect(&hauberkv1.DiscoveryRequest{NodeReport: report})
	stream.stop <- nil
	stream = s.stream(t)
	stream.expect(&hauberkv1.DiscoveryRequest{ClientVersion: "test", NodeReport: report})
}

func TestRejectsContradictions(t *testing.T) {
	s := start(t, workload)
	stream := s.stream(t)
	stream.expect(&hauberkv1.DiscoveryRequest{ClientVersion: "test", Type: workload, Subscribe: []string{All}})
	tests := map[string]*hauberkv1.DiscoveryResponse{
		"unknown type":   {Type: 99},
		"body of":        {Type: mesh, Resources: []*hauberkv1.Resource{resource("mesh", "1")}},
		"UNSPECIFIED":    {Type: workload, Resources: []*hauberkv1.Resource{{Name: "uid/a"}}},
		"twice":          {Type: workload, Resources: []*hauberkv1.Resource{resource("a", "1"), resource("a", "2")}},
		"one response":   {Type: workload, Resources: []*hauberkv1.Resource{resource("a", "1")}, Removed: []string{"a"}},
		`the name ""`:    {Type: workload, Removed: []string{""}},
		`the name "*"`:   {Type: workload, Removed: []string{All}},
		"unknown type R": {},
	}
	for want, response := range tests {
		response.Nonce = want
		stream.send(response)
		select {
		case ack := <-stream.in:
			if ack.GetResponseNonce() != want || !strings.Contains(ack.GetError(), want) {
				t.Errorf("got %v, want an error with %q", ack, want)
			}
		case <-time.After(patience):
			t.Fatalf("%s: no answer", want)
		}
	}
	if len(s.got.updates) != 0 {
		t.Errorf("the handler got %v", <-s.got.updates)
	}
}

func TestConcurrentSubscriptions(t *testing.T) {
	s := start(t)
	stream := s.stream(t)
	const workers, each = 8, 50
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			for i := range each {
				s.client.Subscribe(workload, string(rune('a'+w))+"/"+string(rune('A'+i)))
			}
		})
	}
	all.Wait()
	seen := map[string]int{}
	deadline := time.After(patience)
	for len(seen) < workers*each {
		select {
		case request := <-stream.in:
			for _, name := range request.GetSubscribe() {
				seen[name]++
			}
		case <-deadline:
			t.Fatalf("%d names of %d", len(seen), workers*each)
		}
	}
	for name, n := range seen {
		if n != 1 {
			t.Errorf("%s subscribed %d times", name, n)
		}
	}
}

// Only what a server was not told, held by All, and absent of a complete
// response, is gone by silence.
func TestCompleteRemovesByAbsence(t *testing.T) {
	s := newState()
	s.subscribe(workload, All, "ip/1")
	s.begin()
	s.requests()
	ts := s.of(workload)
	ts.held = map[string]string{"uid/told": "1", "uid/untold": "1", "ip/1": "1"}
	ts.told = map[string]struct{}{"uid/told": {}}
	update := s.update(&hauberkv1.DiscoveryResponse{Type: workload, Complete: true, Resources: []*hauberkv1.Resource{resource("uid/new", "1")}})
	if want := []string{"uid/untold"}; !slices.Equal(update.Removed, want) {
		t.Errorf("removed %v, want %v", update.Removed, want)
	}
}

// A name that is given up and wanted again before either was sent must reach
// the server as both, in that order.
func TestUnsubscribeThenSubscribe(t *testing.T) {
	s := newState()
	s.subscribe(workload, "a")
	s.begin()
	s.requests()
	s.unsubscribe(workload, "a")
	s.subscribe(workload, "a")
	got := s.requests()
	want := []*hauberkv1.DiscoveryRequest{{Type: workload, Unsubscribe: []string{"a"}}, {Type: workload, Subscribe: []string{"a"}}}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	s.subscribe(workload, "b")
	s.unsubscribe(workload, "b")
	if got := s.requests(); len(got) != 0 {
		t.Errorf("a name that was never sent: %v", got)
	}
}

func TestErrorText(t *testing.T) {
	for _, text := range []string{"", "\xff", strings.Repeat("é", maxErrorText)} {
		got := errorText(errors.New(text))
		if got == "" || len(got) > maxErrorText || strings.ToValidUTF8(got, "") != got {
			t.Errorf("%q travels as %q", text, got)
		}
	}
}
