package agent_test

import (
	"context"
	"crypto/x509"
	"net"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/identity"
	"github.com/hauberk-mesh/hauberk/internal/identity/identitytest"
)

// controlPlane is a CA and a config stream that say what the test says. TLS,
// certificates and the protocol are real.
type controlPlane struct {
	hauberkv1.UnimplementedCertificateAuthorityServer
	hauberkv1.UnimplementedDiscoveryServer
	t         testing.TB
	authority *identitytest.Authority
	node      string

	mu        sync.Mutex
	resources map[hauberkv1.ResourceType]map[string]*hauberkv1.Resource
	streams   map[*stream]struct{}
	report    *hauberkv1.NodeReport
	rejected  []string // what the agent rejected
}

type stream struct {
	send       chan *hauberkv1.DiscoveryResponse // of size 100; a test sends far fewer
	subscribed map[hauberkv1.ResourceType]bool
}

func newControlPlane(t testing.TB, node string) *controlPlane {
	return &controlPlane{
		t: t, authority: identitytest.NewAuthority(t, "cluster.local"), node: node,
		resources: map[hauberkv1.ResourceType]map[string]*hauberkv1.Resource{}, streams: map[*stream]struct{}{},
	}
}

// serve serves on l until the test ends or stop is called.
func (c *controlPlane) serve(l net.Listener) (stop func()) {
	source := c.authority.Control(c.t)
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(identity.ServerTLS(source, identity.WithOptionalClient()))))
	hauberkv1.RegisterCertificateAuthorityServer(server, c)
	hauberkv1.RegisterDiscoveryServer(server, c)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	stop = sync.OnceFunc(func() { server.Stop(); <-done })
	c.t.Cleanup(stop)
	return stop
}

func (c *controlPlane) Sign(_ context.Context, r *hauberkv1.SignRequest) (*hauberkv1.SignResponse, error) {
	request, err := x509.ParseCertificateRequest(r.GetCsr())
	if err != nil {
		return nil, err
	}
	template := c.authority.Template(c.t, identity.Peer{ID: identity.NodeID(c.authority.TrustDomain), PodUID: "agent", Node: c.node})
	leaf := c.authority.Sign(c.t, template, request.PublicKey)
	return &hauberkv1.SignResponse{Chain: [][]byte{leaf.Raw}, Roots: [][]byte{c.authority.Root.Raw}, TrustDomain: "cluster.local"}, nil
}

func (c *controlPlane) Stream(s hauberkv1.Discovery_StreamServer) error {
	st := &stream{send: make(chan *hauberkv1.DiscoveryResponse, 100), subscribed: map[hauberkv1.ResourceType]bool{}}
	c.mu.Lock()
	c.streams[st] = struct{}{}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.streams, st)
		c.mu.Unlock()
	}()
	requests := make(chan *hauberkv1.DiscoveryRequest)
	go func() {
		defer close(requests)
		for {
			r, err := s.Recv()
			if err != nil {
				return
			}
			select {
			case requests <- r:
			case <-s.Context().Done():
				return
			}
		}
	}()
	for {
		select {
		case r, ok := <-requests:
			if !ok {
				return nil
			}
			c.take(st, r)
		case response := <-st.send:
			if err := s.Send(response); err != nil {
				return err
			}
		}
	}
}

func (c *controlPlane) take(st *stream, r *hauberkv1.DiscoveryRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.GetNodeReport() != nil {
		c.report = r.GetNodeReport()
	}
	if r.GetError() != "" {
		c.rejected = append(c.rejected, r.GetError())
	}
	for _, name := range r.GetSubscribe() {
		if name != "*" {
			continue
		}
		st.subscribed[r.GetType()] = true
		response := &hauberkv1.DiscoveryResponse{Type: r.GetType(), Nonce: "first", Complete: true}
		for _, resource := range c.resources[r.GetType()] {
			response.Resources = append(response.Resources, resource)
		}
		st.send <- response
	}
}

// tell makes resources known and sends them to whoever is connected.
func (c *controlPlane) tell(t hauberkv1.ResourceType, resources ...*hauberkv1.Resource) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.resources[t] == nil {
		c.resources[t] = map[string]*hauberkv1.Resource{}
	}
	for _, r := range resources {
		c.resources[t][r.GetName()] = r
	}
	for st := range c.streams {
		if st.subscribed[t] {
			st.send <- &hauberkv1.DiscoveryResponse{Type: t, Nonce: "more", Resources: resources}
		}
	}
}

// lastReport is what the agent told last.
func (c *controlPlane) lastReport() *hauberkv1.NodeReport {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.report
}
