package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/test/bufconn"

	"github.com/hauberk-mesh/hauberk/internal/identity"
	"github.com/hauberk-mesh/hauberk/internal/identity/identitytest"
)

type meeting struct {
	client, server       tls.ConnectionState
	clientErr, serverErr error
}

// meet shakes hands over a pipe and exchanges a byte each way, so that both ends
// learn the other's verdict and session tickets arrive.
func meet(t *testing.T, client, server *tls.Config) meeting {
	t.Helper()
	// Buffered: both ends may write at once when one refuses.
	listener := bufconn.Listen(1 << 16)
	defer listener.Close()
	var b net.Conn
	accepted := make(chan struct{})
	go func() { b, _ = listener.Accept(); close(accepted) }()
	a, err := listener.Dial()
	if err != nil {
		t.Fatal(err)
	}
	<-accepted
	type end struct {
		state tls.ConnectionState
		err   error
	}
	done := make(chan end)
	go func() {
		defer b.Close()
		conn := tls.Server(b, server)
		err := conn.Handshake()
		if err == nil {
			_, err = io.ReadFull(conn, make([]byte, 1))
		}
		if err == nil {
			_, err = conn.Write([]byte{1})
		}
		done <- end{conn.ConnectionState(), err}
	}()
	conn := tls.Client(a, client)
	err = conn.Handshake()
	if err == nil {
		_, err = conn.Write([]byte{1})
	}
	if err == nil || errors.Is(err, io.ErrClosedPipe) {
		// A refusal of the server is read, not written.
		_, err = io.ReadFull(conn, make([]byte, 1))
	}
	a.Close()
	other := <-done
	return meeting{conn.ConnectionState(), other.state, err, other.err}
}

func TestHandshake(t *testing.T) {
	ca := identitytest.NewAuthority(t, "")
	stranger := identitytest.NewAuthority(t, "")
	abroad := identitytest.NewAuthority(t, "abroad.example")
	server := ca.Workload(t, "bank", "database", "pod-1")
	serverID := ca.ID(t, "bank", "database")
	good := identity.Expect{ID: serverID, PodUID: "pod-1"}
	client := ca.Workload(t, "bank", "summary", "pod-2")

	caLeaf := func(change func(*x509.Certificate)) *tls.Config {
		// What Source.Set would not take.
		svid := ca.SVID(t, identity.Peer{ID: ca.ID(t, "bank", "summary")}, time.Hour)
		template := ca.Template(t, identity.Peer{ID: svid.ID})
		change(template)
		cert := ca.Sign(t, template, svid.PrivateKey.Public())
		config := identity.ClientTLS(client, good)
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: svid.PrivateKey}, nil
		}
		return config
	}
	tests := []struct {
		name      string
		client    *tls.Config
		server    *tls.Config
		clientErr string
		serverErr string
	}{
		{name: "good", client: identity.ClientTLS(client, good)},
		{name: "any pod", client: identity.ClientTLS(client, identity.Expect{ID: serverID})},
		{name: "wrong pod", client: identity.ClientTLS(client, identity.Expect{ID: serverID, PodUID: "pod-9"}), clientErr: `want pod "pod-9"`, serverErr: "bad certificate"},
		{name: "wrong identity", client: identity.ClientTLS(client, identity.Expect{ID: ca.ID(t, "bank", "admin")}), clientErr: "want spiffe", serverErr: "bad certificate"},
		{name: "nobody expected", client: identity.ClientTLS(client, identity.Expect{}), clientErr: "no identity is expected", serverErr: "bad certificate"},
		{name: "server of another CA", client: identity.ClientTLS(client, good),
			server: identity.ServerTLS(stranger.Workload(t, "bank", "database", "pod-1")), clientErr: "unknown authority", serverErr: "bad certificate"},
		{name: "client of another CA", client: identity.ClientTLS(stranger.Source(t, identity.Peer{ID: serverID}, ca), good), clientErr: "bad certificate", serverErr: "unknown authority"},
		{name: "server of another trust domain", client: identity.ClientTLS(client, good),
			server: identity.ServerTLS(abroad.Workload(t, "bank", "database", "pod-1")), clientErr: "not of trust domain", serverErr: "bad certificate"},
		{name: "no certificate", client: &tls.Config{InsecureSkipVerify: true}, clientErr: "certificate required", serverErr: "didn't provide a certificate"},
		{name: "optional and none", client: &tls.Config{InsecureSkipVerify: true}, server: identity.ServerTLS(server, identity.WithOptionalClient())},
		{name: "optional and bad", client: identity.ClientTLS(stranger.Source(t, identity.Peer{ID: serverID}, ca), good),
			server: identity.ServerTLS(server, identity.WithOptionalClient()), clientErr: "bad certificate", serverErr: "unknown authority"},
		{name: "TLS 1.2", client: &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}, clientErr: "protocol version", serverErr: "unsupported versions"},
		{name: "client is a CA", client: caLeaf(func(c *x509.Certificate) { c.IsCA = true }), clientErr: "bad certificate", serverErr: "is a CA"},
		{name: "client not yet valid", client: caLeaf(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), clientErr: "bad certificate", serverErr: "not yet valid"},
		{name: "client expired", client: caLeaf(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(-time.Second)
		}), clientErr: "bad certificate", serverErr: "has expired"},
		{name: "server without SVID", client: identity.ClientTLS(client, good), server: identity.ServerTLS(empty(t, ca)), clientErr: "internal error", serverErr: "no valid SVID"},
		{name: "client without SVID", client: identity.ClientTLS(empty(t, ca), good), clientErr: "no valid SVID", serverErr: "remote error"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.server == nil {
				test.server = identity.ServerTLS(server, identity.WithALPN("hauberk/tcp"))
			}
			got := meet(t, test.client, test.server)
			for _, side := range []struct {
				name, want string
				err        error
			}{{"client", test.clientErr, got.clientErr}, {"server", test.serverErr, got.serverErr}} {
				if side.want == "" && side.err != nil {
					t.Errorf("%s: %v", side.name, side.err)
				}
				if side.want != "" && (side.err == nil || !strings.Contains(side.err.Error(), side.want)) {
					t.Errorf("%s: got error %v, want one with %q", side.name, side.err, side.want)
				}
			}
		})
	}
}

func empty(t *testing.T, ca *identitytest.Authority) *identity.Source {
	t.Helper()
	source, err := identity.NewSource(ca.TrustDomain, ca.Roots())
	if err != nil {
		t.Fatal(err)
	}
	return source
}

func TestPeerOf(t *testing.T) {
	ca := identitytest.NewAuthority(t, "")
	server := ca.Workload(t, "bank", "database", "pod-1")
	client := ca.NodeAgent(t, "node-1", "pod-2")
	got := meet(t, identity.ClientTLS(client, identity.Expect{ID: ca.ID(t, "bank", "database")}, "hauberk/http1"),
		identity.ServerTLS(server, identity.WithALPN("hauberk/tcp", "hauberk/http1")))
	if got.clientErr != nil || got.serverErr != nil {
		t.Fatal(got.clientErr, got.serverErr)
	}
	if got.server.NegotiatedProtocol != "hauberk/http1" || got.server.Version != tls.VersionTLS13 {
		t.Errorf("got %q, version %x", got.server.NegotiatedProtocol, got.server.Version)
	}
	peer, err := identity.PeerOf(got.server)
	if want := (identity.Peer{ID: identity.NodeID(ca.TrustDomain), PodUID: "pod-2", Node: "node-1"}); err != nil || peer != want {
		t.Errorf("server sees %v (%v), want %v", peer, err, want)
	}
	peer, err = identity.PeerOf(got.client)
	if want := (identity.Peer{ID: ca.ID(t, "bank", "database"), PodUID: "pod-1"}); err != nil || peer != want {
		t.Errorf("client sees %v (%v), want %v", peer, err, want)
	}

	got = meet(t, &tls.Config{InsecureSkipVerify: true}, identity.ServerTLS(server, identity.WithOptionalClient()))
	if _, err := identity.PeerOf(got.server); !errors.Is(err, identity.ErrNoPeer) {
		t.Errorf("without a certificate: got %v, want ErrNoPeer", err)
	}
	if _, err := identity.PeerOf(tls.ConnectionState{}); err == nil {
		t.Error("a connection without a handshake has a peer")
	}
}

// A session outlives neither the root of whoever it was made with, nor an
// expiry. The ends are of two roots, so that one can be removed alone.
func TestResumption(t *testing.T) {
	type ends struct {
		ca, cb         *identitytest.Authority
		client, server *identity.Source
	}
	tests := []struct {
		name      string
		change    func(*testing.T, ends)
		resumes   bool
		clientErr string
		serverErr string
	}{
		{name: "nothing changed", change: func(*testing.T, ends) {}, resumes: true},
		{name: "server drops the client's root", change: func(t *testing.T, e ends) { setRoots(t, e.server, e.cb.Root) },
			clientErr: "bad certificate", serverErr: "unknown authority"},
		{name: "client drops the server's root", change: func(t *testing.T, e ends) { setRoots(t, e.client, e.ca.Root) },
			clientErr: "unknown authority", serverErr: "bad certificate"},
		{name: "client's SVID expired", change: func(t *testing.T, e ends) {
			time.Sleep(90 * time.Minute)
			if err := e.server.Set(e.cb.SVID(t, identity.Peer{ID: e.cb.ID(t, "bank", "server")}, time.Hour), nil); err != nil {
				t.Fatal(err)
			}
		}, clientErr: "no valid SVID", serverErr: "remote error"},
		{name: "server's SVID expired", change: func(t *testing.T, e ends) {
			time.Sleep(90 * time.Minute)
			if err := e.client.Set(e.ca.SVID(t, identity.Peer{ID: e.ca.ID(t, "bank", "client")}, time.Hour), nil); err != nil {
				t.Fatal(err)
			}
		}, clientErr: "internal error", serverErr: "no valid SVID"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca, cb := identitytest.NewAuthority(t, ""), identitytest.NewAuthority(t, "")
				client := ca.Source(t, identity.Peer{ID: ca.ID(t, "bank", "client")}, cb)
				server := cb.Source(t, identity.Peer{ID: cb.ID(t, "bank", "server")}, ca)
				clientTLS := identity.ClientTLS(client, identity.Expect{ID: cb.ID(t, "bank", "server")})
				serverTLS := identity.ServerTLS(server)
				for _, resumed := range []bool{false, true} {
					got := meet(t, clientTLS, serverTLS)
					if got.clientErr != nil || got.serverErr != nil || got.client.DidResume != resumed {
						t.Fatalf("before: %v, %v, resumed %v, want %v", got.clientErr, got.serverErr, got.client.DidResume, resumed)
					}
				}
				test.change(t, ends{ca, cb, client, server})
				got := meet(t, clientTLS, serverTLS)
				if test.resumes {
					if got.clientErr != nil || got.serverErr != nil || !got.server.DidResume {
						t.Fatalf("got %v, %v, resumed %v", got.clientErr, got.serverErr, got.server.DidResume)
					}
					if peer, err := identity.PeerOf(got.server); err != nil || peer.ID != ca.ID(t, "bank", "client") {
						t.Errorf("the resumed session is of %v (%v)", peer, err)
					}
					return
				}
				if got.clientErr == nil || !strings.Contains(got.clientErr.Error(), test.clientErr) {
					t.Errorf("client: got %v, want %q", got.clientErr, test.clientErr)
				}
				if got.serverErr == nil || !strings.Contains(got.serverErr.Error(), test.serverErr) {
					t.Errorf("server: got %v, want %q", got.serverErr, test.serverErr)
				}
			})
		})
	}
}

func setRoots(t *testing.T, source *identity.Source, roots ...*x509.Certificate) {
	t.Helper()
	if err := source.SetRoots(roots); err != nil {
		t.Fatal(err)
	}
}

func TestSource(t *testing.T) {
	ca, other := identitytest.NewAuthority(t, ""), identitytest.NewAuthority(t, "")
	id := ca.ID(t, "bank", "summary")
	source := empty(t, ca)
	if _, ok := source.Current(); ok || !source.Expiry().IsZero() {
		t.Error("an empty source has an SVID")
	}
	if _, err := source.GetX509SVID(); !errors.Is(err, identity.ErrNoSVID) {
		t.Errorf("got %v, want ErrNoSVID", err)
	}
	isClosed := func(c <-chan struct{}) bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	good := ca.SVID(t, identity.Peer{ID: id}, time.Hour)
	mixed := *good
	mixed.PrivateKey = ca.SVID(t, identity.Peer{ID: id}, time.Hour).PrivateKey
	misnamed := *good
	misnamed.ID = ca.ID(t, "bank", "admin")
	for name, bad := range map[string]*x509svid.SVID{
		"none": nil, "of another root": other.SVID(t, identity.Peer{ID: id}, time.Hour), "with another key": &mixed,
		"with another name": &misnamed, "expired": ca.SVID(t, identity.Peer{ID: id}, -time.Second),
	} {
		if err := source.Set(bad, nil); err == nil {
			t.Errorf("an SVID %s is taken", name)
		}
	}
	if isClosed(source.Ready()) {
		t.Error("ready without an SVID")
	}
	updated := source.Updated()
	if err := source.Set(good, nil); err != nil {
		t.Fatal(err)
	}
	if !isClosed(source.Ready()) || !isClosed(updated) || isClosed(source.Updated()) {
		t.Error("the first SVID is not announced once")
	}
	if err := source.SetRoots(nil); err == nil {
		t.Error("an empty list of roots is taken")
	}
	if err := source.SetRoots(good.Certificates); err == nil {
		t.Error("a leaf is taken for a root")
	}
	if err := source.SetRoots(ca.Roots()); err != nil || isClosed(source.Updated()) {
		t.Errorf("the same roots count as a change (%v)", err)
	}
	bundle, err := source.GetX509BundleForTrustDomain(ca.TrustDomain)
	if err != nil || !bundle.HasX509Authority(ca.Root) {
		t.Errorf("bundle %v: %v", bundle, err)
	}
	if _, err := source.GetX509BundleForTrustDomain(spiffeid.RequireTrustDomainFromString("abroad.example")); err == nil {
		t.Error("there are roots for another trust domain")
	}
}
